"""Make data/recordings/dashwood.wav: two sentences, with pauses, of a LibriVox reading.

Run by hand. The sentences come as public domain recordings in the source archive of
pocketsphinx on PyPI, where they test a speech recogniser:

    pip download pocketsphinx==5.1.1 --no-deps --no-binary pocketsphinx
    python tests/make_recording.py pocketsphinx-5.1.1.tar.gz

They follow each other too closely there to show a pause. So before, between and after
them come PAUSE_S seconds of the room in which they were read: the quiet beginning of
the first, forwards and backwards in turn, so that no seam is heard.
"""

import hashlib
import sys
import tarfile
import wave
from pathlib import Path

import numpy as np

RECORDING = Path(__file__).parent.parent / "data" / "recordings" / "dashwood.wav"
ARCHIVE_SHA256 = "675778b309a22dfc9b7d37f7621976bba491d2a5f8c59696bd77fd6d07271355"
SENTENCE = "test/data/librivox/sense_and_sensibility_01_austen_64kb-{}.wav"
SENTENCES = ("0930", "0880")  # as they show a pause best, not as in the book
RATE = 16_000
QUIET_S = 0.15
PAUSE_S = 0.75


def read(archive: tarfile.TarFile, sentence: str) -> np.ndarray:
    """Return a sentence as int16 samples, 16 kHz, mono."""
    name = f"pocketsphinx-5.1.1/{SENTENCE.format(sentence)}"
    with wave.open(archive.extractfile(name)) as file:
        assert (file.getframerate(), file.getnchannels()) == (RATE, 1)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def main(path: str) -> None:
    """Cut the recording together and write it."""
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == ARCHIVE_SHA256
    with tarfile.open(path) as archive:
        first, second = (read(archive, sentence) for sentence in SENTENCES)
    quiet = first[: int(QUIET_S * RATE)]
    pause = np.resize(np.concatenate([quiet, quiet[::-1]]), int(PAUSE_S * RATE))
    samples = np.concatenate([pause, first, pause, second, pause])
    RECORDING.parent.mkdir(exist_ok=True)
    with wave.open(str(RECORDING), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())


if __name__ == "__main__":
    main(sys.argv[1])
