"""Thumbnails as pictures: read, turned by a pose, packed for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from eqmodel.groups import FiniteGroup
from pipelines.fast_decode import JPEG, decode_plain, decode_webp
from pipelines.tiff import Caps

Pixels = NDArray[np.uint8]
MAX_SIDE = 256


@dataclass(frozen=True)
class Pose:
    """Mirror left-right if ``mirror``, then turn ``angle_degrees`` counter-clockwise."""

    angle_degrees: float = 0.0
    mirror: bool = False

    @property
    def identity(self) -> bool:
        """Whether nothing moves."""
        return not self.mirror and self.angle_degrees % 360 == 0

    @property
    def words(self) -> str:
        """For people: 'as it is', 'turned 90°', 'mirrored, then turned 90°'."""
        turn = f"turned {self.angle_degrees:g}°" if self.angle_degrees % 360 else ""
        if self.mirror:
            return f"mirrored, then {turn}" if turn else "mirrored"
        return turn or "as it is"

    @property
    def css(self) -> str:
        """The CSS transform that does this to a picture; CSS counts angles clockwise."""
        turn = f"rotate({-self.angle_degrees:g}deg)"
        return f"{turn} scaleX(-1)" if self.mirror else turn

    def as_dict(self) -> dict[str, Any]:
        """As the JSON interface has it."""
        return {"angle_degrees": float(self.angle_degrees), "mirror": self.mirror}


def poses_of(group: FiniteGroup) -> list[Pose]:
    """The elements of a group as poses, in the order of their index."""
    return [Pose(group.degrees(g), g >= group.n) for g in range(group.order)]


def open_picture(data: bytes | None) -> Image.Image | None:
    """A thumbnail as an RGB or grey picture; None for none, or one that cannot be read."""
    if not data:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=["WEBP", "PNG", "JPEG"]) as picture:
            if max(picture.size) > MAX_SIDE:
                return None
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return None


def open_pixels(data: bytes | None) -> Pixels | None:
    """A thumbnail as RGB pixels (H, W, 3); None for none, or one that cannot be read."""
    if not data:
        return None
    pixels = decode_webp(data, MAX_SIDE)
    if pixels is None and data.startswith(JPEG):
        pixels = decode_plain(data, Caps(max_pixels=MAX_SIDE**2))
    if pixels is None or max(pixels.shape) > MAX_SIDE:
        picture = open_picture(data)
        return None if picture is None else np.asarray(picture)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)


def from_pixels(image: NDArray[Any]) -> Image.Image:
    """Decoded pixels (H, W) or (H, W, C), uint8, uint16 or float32, as an RGB picture.

    16-bit and float images are stretched between their darkest and brightest value.
    """
    pixels = image if image.ndim == 3 else image[..., None]
    pixels = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1]
    if pixels.dtype != np.uint8:
        values = np.nan_to_num(pixels.astype(np.float32))
        low, high = float(values.min(initial=0)), float(values.max(initial=1))
        pixels = ((values - low) * (255.0 / max(high - low, 1e-12))).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))))


def apply_pose(picture: Image.Image, pose: Pose) -> Image.Image:
    """The picture mirrored and turned: exact for quarter turns, else one interpolation, in which
    the ground goes on where the turn uncovers it."""
    if pose.mirror:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    quarters, rest = divmod(pose.angle_degrees % 360, 90)
    if rest:
        bicubic = Image.Resampling.BICUBIC
        return picture.rotate(pose.angle_degrees, bicubic, fillcolor=_ground(picture))
    turns = Image.Transpose
    turn = (None, turns.ROTATE_90, turns.ROTATE_180, turns.ROTATE_270)[int(quarters)]
    return picture if turn is None else picture.transpose(turn)


def _ground(picture: Image.Image) -> Any:
    """The median of the border, a value for each channel."""
    pixels = np.asarray(picture)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    middle = np.median(edge, axis=0).astype(int)
    return int(middle) if middle.ndim == 0 else tuple(middle.tolist())


def fit(picture: Image.Image, side: int, ground: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    """The picture centred in a square of ``side`` pixels."""
    scale = side / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    resized = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side), ground)
    square.paste(resized, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def webp(picture: Image.Image, quality: int = 70) -> bytes:
    """The picture as WebP."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def kind_of(data: bytes) -> str:
    """The media type of a thumbnail."""
    if data[:4] == b"RIFF":
        return "image/webp"
    return "image/jpeg" if data[:2] == b"\xff\xd8" else "image/png"


def data_uri(data: bytes, kind: str = "image/webp") -> str:
    """Bytes as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def thumbnails(batches: Iterable[pa.RecordBatch], ids: Collection[int]) -> Mapping[int, bytes]:
    """Thumbnails of the image_ids asked for, from batches with image_id and thumbnail."""
    wanted = pa.array(sorted(ids), pa.int64())
    found: dict[int, bytes] = {}
    for batch in batches if len(wanted) else ():
        hits = batch.filter(pc.is_in(batch["image_id"], value_set=wanted))
        names, pictures = hits["image_id"].to_pylist(), hits["thumbnail"].to_pylist()
        found.update((i, data) for i, data in zip(names, pictures, strict=True) if data)
    return found
