"""Opening a dataset's image files."""

import PIL.Image
import PIL.ImageOps

from benchmarks.datasets.records import LabelledImage
from common.errors import UserError


def open_image(image: LabelledImage) -> PIL.Image.Image:
    """The image in RGB, turned upright, as read_image of detectron2/data/detection_utils.py.

    Raises UserError for an unreadable file and for one whose size is not the annotation's.
    """
    try:
        with PIL.Image.open(image.file) as opened:
            pixels = PIL.ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{image.file}: no such image, though the image list names it") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{image.file}: not a readable image ({error})") from None
    if pixels.size != (image.width, image.height):
        raise UserError(
            f"{image.file}: {pixels.size[0]}x{pixels.size[1]} pixels, "
            f"but its annotation says {image.width}x{image.height}"
        )
    return pixels
