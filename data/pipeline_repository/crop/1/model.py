"""The lines of text that the detector's map shows, cut out of the photograph.

Made for lines that are nearly level: each is cut out along an upright box. PaddleOCR's
own code (OpenCV, Shapely, pyclipper) also straightens lines that are not.
"""

import io

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

LIKELY = 0.3  # what a pixel of a line scores at least
SURE = 0.5  # what a line's pixels score on average
SMALLEST = 4  # pixels of the map; what is lower or narrower is no text
UNCLIP = 1.6  # the map shows lines thinner than they are: PP-OCRv4's own factor
HEIGHT, WIDTH = 48, 320  # what the recogniser was trained on; lines may be longer


class TritonPythonModel:
    """One instance, which answers `photo` and `map` with `crops` and `boxes`."""

    def execute(self, requests):
        """Answer each request by itself."""
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """Return the lines from top to bottom."""
        photo = pb_utils.get_input_tensor_by_name(request, "photo").as_numpy()
        probability = pb_utils.get_input_tensor_by_name(request, "map").as_numpy()
        picture = Image.open(io.BytesIO(photo.tobytes())).convert("RGB")
        boxes = find_lines(probability[0, 0], picture.size)
        outputs = [
            pb_utils.Tensor("crops", cut_out(picture, boxes)),
            pb_utils.Tensor("boxes", np.array(boxes, np.int32).reshape(-1, 4)),
        ]
        return pb_utils.InferenceResponse(outputs)


def find_lines(probability, size):
    """Return a box for each line, in pixels of the photograph, from top to bottom."""
    scale = np.array(size) / probability.shape[::-1]
    boxes = []
    for left, top, right, bottom, score in regions(probability):
        width, height = right - left, bottom - top
        if score < SURE or min(width, height) < SMALLEST:
            continue
        margin = UNCLIP * width * height / (2 * (width + height))
        corners = [[left - margin, top - margin], [right + margin, bottom + margin]]
        corners = np.clip(np.round(corners * scale), 0, size).astype(int)
        boxes.append(corners.ravel().tolist())
    return sorted(boxes, key=lambda box: box[1])


def regions(probability):
    """Yield (left, top, right, bottom, mean) of each connected region of likely pixels.

    Row by row: a run of likely pixels that touches runs of the row above joins their
    region, and if there are several, joins these regions, too.
    """
    parent, runs, above = [], [], []

    def root(region):
        while parent[region] != region:
            region = parent[region]
        return region

    for y, row in enumerate(probability > LIKELY):
        edges = np.flatnonzero(np.diff(row, prepend=False, append=False)).reshape(-1, 2)
        here = []
        for start, stop in edges.tolist():
            region = len(parent)
            parent.append(region)
            for other_start, other_stop, other in above:
                if other_start <= stop and start <= other_stop:
                    parent[root(other)] = region
            here.append((start, stop, region))
            runs.append((start, y, stop, y + 1, probability[y, start:stop].sum()))
        above = here

    members = {}
    for region, run in enumerate(runs):
        members.setdefault(root(region), []).append(run)
    for own in members.values():
        lefts, tops, rights, bottoms, sums = np.array(own).T
        mean = sums.sum() / (rights - lefts).sum()
        yield lefts.min(), tops.min(), rights.max(), bottoms.max(), mean


def cut_out(picture, boxes):
    """Return the lines as FP32 [n, 3, 48, the longest's width], blue first, in [-1, 1].

    The right of a shorter line is grey. Where there is no line there is one that is all
    grey, because Triton refuses a batch of none.
    """
    lines = [picture.crop(box) for box in boxes]
    widths = [round(HEIGHT * line.width / line.height) for line in lines]
    shape = (max(1, len(lines)), 3, HEIGHT, max([WIDTH, *widths]))
    crops = np.zeros(shape, np.float32)
    for crop, line, width in zip(crops, lines, widths, strict=False):
        pixels = np.asarray(line.resize((width, HEIGHT), Image.BILINEAR), np.float32)
        crop[:, :, :width] = pixels[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1
    return crops
