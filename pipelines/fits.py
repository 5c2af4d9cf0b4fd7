"""FITS, as telescopes write it: the first image of a file, by astropy (the extra ``fits``).

Two axes become (H, W), a third becomes the channels, (H, W, C); axes of length one are left out.
Values are physical ones (BSCALE, BZERO): 8 and unsigned 16 bits stay, others become float32. The
first row that is stored is the first row; tile compression is read.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from pipelines.errors import Rejected
from pipelines.tiff import Caps, Pixels, as_pixels

FITS_MAGIC = b"SIMPLE  ="
MAX_EXTENSIONS = 100
MAX_AXES = 9


def read_fits(data: bytes, caps: Caps) -> Pixels:
    """The first image, (H, W) or (H, W, C), uint8, uint16 or float32.

    Rejected without astropy, without an image, over the cap, or with values that are not finite.
    """
    try:
        from astropy.io import fits
    except ImportError as error:
        raise Rejected(
            "unsupported format: FITS is read with the extra 'fits' (pip install astropy)"
        ) from error
    with fits.open(io.BytesIO(data), memmap=False, lazy_load_hdus=True) as file:
        image = _first_image(file)
        shape = tuple(size for size in image.shape if size != 1)
        if len(shape) < 2:
            shape = image.shape[-2:]
        if len(shape) not in (2, 3):
            raise Rejected(f"FITS of {len(shape)} axes; two, or three with channels, are expected")
        caps.check(shape[-1], shape[-2])
        _check_size(image, shape, caps, len(data))
        values = np.asarray(image.data).reshape(shape)
    if values.ndim == 3:
        values = np.moveaxis(values, 0, -1)
    return np.ascontiguousarray(as_pixels(values))


def _first_image(file: Any) -> Any:
    for place in range(MAX_EXTENSIONS):
        try:
            part = file[place]
        except IndexError:
            break
        if part.is_image and 2 <= len(part.shape) <= MAX_AXES:
            return part
    raise Rejected("FITS without an image of two axes")


def _check_size(image: Any, shape: tuple[int, ...], caps: Caps, length: int) -> None:
    """Rejected when there is more than the cap, or less than the header says."""
    decoded = 8 * int(np.prod(shape, dtype=np.int64))
    if decoded > 2 * caps.max_bytes:
        raise Rejected(f"{decoded // 2} bytes decoded are over the cap of {caps.max_bytes}")
    place = image.fileinfo()
    if place is not None and place["datLoc"] + image.size > length:
        raise Rejected("damaged: truncated (its header tells of more data)")
