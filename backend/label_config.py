"""The label config of a project: the image, and the tags for drawing masks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.errors import NotSegmentable
from backend.fingerprints import fingerprint

MAX_LABELS = 253  # maximum number of labels per model: masks are bytes, and some values are reserved
DRAWING_TAGS = {"BrushLabels": "brush", "PolygonLabels": "polygon"}


@dataclass(frozen=True)
class Tag:
    """One control tag that draws masks: `<BrushLabels name= toName=>` or `<PolygonLabels ...>`."""

    name: str
    kind: str  # "brush" or "polygon"
    to_name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class LabelConfig:
    """The value of the Image tag (see `image_value`), and the tags for drawing masks."""

    image_value: str
    tags: tuple[Tag, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The distinct labels in config order; class i + 1 of a mask is labels[i]."""
        return tuple(dict.fromkeys(label for tag in self.tags for label in tag.labels))

    def tag_of(self, label: str) -> Tag:
        """The tag for our own masks of `label`: a brush if there is one."""
        return next(tag for tag in self.tags if label in tag.labels)

    @property
    def key(self) -> str:
        """Changes whenever something changes that masks or their encoding depend on."""
        return fingerprint(self.to_json())

    def to_json(self) -> str:
        return json.dumps([self.image_value, [[t.name, t.kind, t.to_name, t.labels] for t in self.tags]])

    @classmethod
    def from_json(cls, text: str) -> LabelConfig | None:
        """The config that `to_json` wrote; None for the empty text."""
        if not text:
            return None
        image_value, tags = json.loads(text)
        return cls(image_value, tuple(Tag(n, kind, to, tuple(labels)) for n, kind, to, labels in tags))

    @classmethod
    def from_parsed(cls, parsed: Mapping[str, Any], project: int) -> LabelConfig:
        """Read Label Studio's own `parsed_label_config`.

        Raises NotSegmentable, with what to add and where, when the config cannot draw masks on an image.
        """
        where = "in Settings > Labeling Interface > Code"
        found: list[tuple[str, Tag]] = []
        for name, tag in parsed.items():
            kind = DRAWING_TAGS.get(tag.get("type", ""))
            if kind is None:
                continue
            images = [i for i in tag.get("inputs", ()) if _is_supported(tag, i)]
            labels = tuple(tag.get("labels") or ())
            if images and labels:
                found.append((images[0]["value"], Tag(name, kind, tag["to_name"][0], labels)))
        if not found:
            drawing = [name for name, tag in parsed.items() if tag.get("type") in DRAWING_TAGS]
            if why := _unsupported_image([parsed[name] for name in drawing]):
                raise NotSegmentable(f"project {project}: in the label config, {drawing[0]!r} {why} {where}.")
            if drawing:
                raise NotSegmentable(
                    f"project {project}: {drawing[0]!r} in the label config has no labels or does not point "
                    f'to an image. Give it at least one <Label value="..."/> and the toName of an '
                    f'<Image name="image" value="$image"/> {where}.'
                )
            raise NotSegmentable(
                f"project {project}: the label config has no BrushLabels or PolygonLabels, but segmentation "
                f'needs one. Add <BrushLabels name="tag" toName="image"><Label value="Lung"/></BrushLabels> '
                f'beside <Image name="image" value="$image"/> {where}.'
            )
        image_value, first = found[0]
        tags = [tag for value, tag in found if value == image_value and tag.to_name == first.to_name]
        tags.sort(key=lambda tag: tag.kind != "brush")  # stable: brushes first
        config = cls(image_value, tuple(tags))
        if len(config.labels) > MAX_LABELS:
            raise NotSegmentable(
                f"project {project}: the label config has {len(config.labels)} mask labels; a model can learn at most "
                f"{MAX_LABELS}. Remove some {where}."
            )
        return config


def _is_supported(tag: Mapping[str, Any], shown: Mapping[str, Any]) -> bool:
    """Whether masks can be drawn on what a control tag points to."""
    return shown.get("type") == "Image" and bool(shown.get("value")) and not _is_repeated(tag)


def _is_repeated(tag: Mapping[str, Any]) -> bool:
    """Whether a tag is inside a <Repeater>. Label Studio drops predictions for such tags."""
    names = [*tag.get("to_name", ()), *(str(i.get("value")) for i in tag.get("inputs", ()))]
    return bool(tag.get("regex")) or any("{{" in name for name in names)


def _unsupported_image(tags: Sequence[Mapping[str, Any]]) -> str:
    """What these tags point to that is not supported, and the cure; "" if that is not what is wrong."""
    cure = 'Point it to one image, such as <Image name="image" value="$image"/> or value="$images[0]",'
    if any(map(_is_repeated, tags)):
        return f"is inside a <Repeater>, which is not supported: Label Studio drops predictions for it. {cure}"
    shown = [i for tag in tags for i in tag.get("inputs", ())]
    if any(i.get("type") == "Image" and i.get("valueList") for i in shown):
        return f"points to an <Image> with valueList (several images), which is not supported. {cure}"
    others = sorted({str(i.get("type")) for i in shown} - {"Image"})
    return f"points to <{'> and <'.join(others)}>, which is not supported. {cure}" if others else ""
