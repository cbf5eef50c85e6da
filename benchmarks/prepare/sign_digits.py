"""Convert the sign digits into a data set: every fourth image of a class for val, the rest for train.

The archive has 2,062 images of hands showing a digit (github.com/ardamavi/Sign-Language-Digits-Dataset, Apache-2.0):

    python benchmarks/prepare/sign_digits.py Dataset sign-digits
    prunefront train --model vim_nano_patch8 --data folder:sign-digits --epochs 100 --batch-size 32 --out run
"""

import argparse
from pathlib import Path

from PIL import Image

SIDE = 100  # pixels; three images have 3024


def main() -> None:
    """Copy DATASET/DIGIT/*.JPG to OUT/{train,val}/DIGIT, scaled to one size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    a = parser.parse_args()
    for folder in sorted(path for path in a.dataset.iterdir() if path.is_dir()):
        for index, file in enumerate(sorted(folder.glob("*.JPG"))):
            target = a.out / ("val" if index % 4 == 0 else "train") / folder.name / f"{file.stem}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(file) as image:
                image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(target)


if __name__ == "__main__":
    main()
