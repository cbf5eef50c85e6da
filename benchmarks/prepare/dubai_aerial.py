"""Convert the aerial images of Dubai into a segmentation data set: six areas for train, one each for val and test.

The archive has 72 images with masks, of eight areas ("Tile 1" to "Tile 8"). The colours below are those of the masks;
the archive's own list differs. Images are downscaled by `--shrink`, masks by nearest neighbour:

    python benchmarks/prepare/dubai_aerial.py "Semantic segmentation dataset" dubai --shrink 4 --window 96
    prunefront train --model cvmh_unet_nano --data segmentation:dubai --img-size 96 --epochs 15 --out run
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor

CLASSES = {
    "building": "#3C1098",
    "land": "#8429F6",
    "road": "#6EC1E4",
    "vegetation": "#FEDD3A",
    "water": "#E2A929",
}
UNLABELLED = "#9B9B9B"


def known(mask: Image.Image) -> Image.Image:
    """Return a mask in which the few pixels of an unknown colour are unlabelled."""
    pixels = np.array(mask)
    colours = [ImageColor.getrgb(colour) for colour in CLASSES.values()]
    strange = ~np.any([(pixels == colour).all(-1) for colour in colours], axis=0)
    pixels[strange] = ImageColor.getrgb(UNLABELLED)
    return Image.fromarray(pixels)


def main() -> None:
    """Copy `Tile N/{images,masks}` to OUT/{train,val,test}/{images,masks}, and write OUT/classes.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--val", type=int, nargs="+", default=[2], help="areas for val (default: 2)")
    parser.add_argument("--test", type=int, nargs="+", default=[7], help="areas for test (default: 7)")
    parser.add_argument("--shrink", type=int, default=4, help="factor of the downscaling (default: 4)")
    parser.add_argument(
        "--window", type=int, default=96, help="side of a tile in pixels, after downscaling (default: 96)"
    )
    parser.add_argument("--overlap", type=float, default=0.5, help="overlap of train tiles (default: 0.5)")
    a = parser.parse_args()
    for area in range(1, 9):
        split = "val" if area in a.val else "test" if area in a.test else "train"
        for kind, resampling in (("images", Image.Resampling.BOX), ("masks", Image.Resampling.NEAREST)):
            target = a.out / split / kind
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted((a.dataset / f"Tile {area}" / kind).iterdir()):
                with Image.open(file) as image:
                    size = (image.width // a.shrink, image.height // a.shrink)
                    small = image.convert("RGB").resize(size, resampling)
                small = known(small) if kind == "masks" else small
                small.save(target / f"area{area}_{file.stem}.png")
    classes = [{"name": name, "color": colour} for name, colour in CLASSES.items()]
    content = {"classes": classes, "ignore": [UNLABELLED], "window": a.window, "overlap": a.overlap}
    (a.out / "classes.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
