"""BERT's tokeniser: sentences to the numbers of the pieces in vocabulary.txt.

A word that is not in the vocabulary is cut into the longest pieces that are; all but
the first begin with ##. See https://arxiv.org/abs/1810.04805 and, for the greedy cut,
https://arxiv.org/abs/2012.15524.
"""

import string
import unicodedata
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

LONGEST = 128  # pieces of a sentence, its first and last mark included
LONGEST_WORD = 100  # characters
DROPPED = {"Mn", "Cc", "Cf", "Co", "Cs"}  # Unicode's accents and controls
IDEOGRAPHS = [
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2CEAF),
    (0x2F800, 0x2FA1F),
]


def stands_alone(character: str) -> bool:
    """Return whether a character is a word of its own: punctuation and ideographs."""
    return (
        character in string.punctuation
        or unicodedata.category(character).startswith("P")
        or any(first <= ord(character) <= last for first, last in IDEOGRAPHS)
    )


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case and without accents."""
    spaced = ""
    for character in unicodedata.normalize("NFD", text):
        kind = unicodedata.category(character)
        if character.isspace():
            spaced += " "
        elif kind in DROPPED or character == "\N{REPLACEMENT CHARACTER}":
            continue
        elif stands_alone(character):
            spaced += f" {character} "
        else:
            spaced += character.lower()
    return spaced.split()


class Vocabulary:
    """The pieces and their numbers."""

    def __init__(self, file: Path) -> None:
        pieces = file.read_text(encoding="utf-8").splitlines()
        self.numbers = {piece: number for number, piece in enumerate(pieces)}

    def cut(self, word: str) -> list[int]:
        """Return the numbers of a word's pieces, or that of [UNK]."""
        found, rest = [], word
        while rest:
            for end in range(len(rest), 0, -1):
                piece = rest[:end] if rest is word else f"##{rest[:end]}"
                if piece in self.numbers:
                    break
            else:
                return [self.numbers["[UNK]"]]
            found.append(self.numbers[piece])
            rest = rest[end:]
        return found

    def tokens(self, text: str) -> list[int]:
        """Return the numbers for a text, between those of [CLS] and [SEP]."""
        found = []
        for word in words_of(text):
            long = len(word) > LONGEST_WORD
            found += [self.numbers["[UNK]"]] if long else self.cut(word)
        first, last = self.numbers["[CLS]"], self.numbers["[SEP]"]
        return [first, *found[: LONGEST - 2], last]


class TritonPythonModel:
    """The model as Triton knows it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the vocabulary, which lies beside config.pbtxt."""
        folder = Path(pb_utils.get_model_dir()).parent
        self.vocabulary = Vocabulary(folder / "vocabulary.txt")

    def execute(self, requests: list) -> list:
        """Answer each request: text [batch, 1] to tokens [batch, longest]."""
        return [self.answer(request) for request in requests]

    def answer(self, request: object) -> object:
        """Return the response to one request."""
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
        try:
            rows = [self.vocabulary.tokens(text.decode()) for text in texts[:, 0]]
        except UnicodeDecodeError:
            refusal = pb_utils.TritonError("text is not UTF-8")
            return pb_utils.InferenceResponse([], refusal)
        tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for line, row in zip(tokens, rows, strict=True):
            line[: len(row)] = row
        return pb_utils.InferenceResponse([pb_utils.Tensor("tokens", tokens)])
