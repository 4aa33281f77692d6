"""The label config of a project: the image, and the tags that masks are drawn with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from backend.errors import DamagedRecords, NotSegmentable
from backend.fingerprints import fingerprint
from backend.json_text import parse_json

MAX_LABELS = 253  # maximum number of labels per model: masks are bytes, and some values are reserved
LABEL_LENGTH = 1000  # maximum number of characters of a label; longer ones in annotations are cut
KINDS = (
    "brush",
    "bitmask",
    "polygon",
    "ellipse",
    "rectangle",
)  # of tags; earlier ones draw our masks if there are several
DRAWING_TAGS = {name: kind for kind in KINDS for name in (kind.capitalize(), f"{kind.capitalize()}Labels")}
READING = 3  # raised when annotations are read differently, so that all are read once more
WHERE = "in Settings > Labeling Interface > Code"


@contextmanager
def _recorded() -> Iterator[None]:
    """Turns what goes wrong with a value of the records into DamagedRecords."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise DamagedRecords("A label config in the database", "is damaged") from error


def _check_texts(*values: Any) -> None:
    if not all(isinstance(value, str) for value in values):
        raise TypeError


@dataclass(frozen=True)
class Tag:
    """One control tag that draws masks: `<BrushLabels name= toName=>`, or `<Brush>` with the labels of `<Labels>`.

    kind        one of KINDS
    labels_tag  the name of the `<Labels>` tag; "": the tag has labels of its own
    """

    name: str
    kind: str
    to_name: str
    labels: tuple[str, ...]
    labels_tag: str = ""


@dataclass(frozen=True)
class Renames:
    """What people said about labels that the label config no longer has.

    seen  every label that the config ever had
    now   the present name of a renamed label; "": no longer used, so its regions are left out
    """

    seen: tuple[str, ...] = ()
    now: Mapping[str, str] = field(default_factory=dict)

    def label(self, name: str) -> str:
        """The present name of a label; "" for one that is no longer used."""
        for _ in self.now:  # a label may have been renamed more than once
            if name not in self.now:
                break
            name = self.now[name]
        return name

    def to_json(self) -> str:
        return json.dumps({"seen": self.seen, "now": self.now}) if self.seen or self.now else ""

    @classmethod
    def from_json(cls, text: str) -> Renames:
        """What `to_json` wrote. Raises DamagedRecords for anything else."""
        with _recorded():
            found = parse_json(text) if text else {}
            seen, now = tuple(found.get("seen", ())), found.get("now", {})
            _check_texts(*seen, *now.keys(), *now.values())
            return cls(seen, now)


@dataclass(frozen=True)
class LabelConfig:
    """The value of the Image tag (see `image_value`), and the tags for drawing masks.

    image    name of the `<Image>` tag that the masks are drawn on
    objects  names of all tags that controls point to, images and others
    prompts  names of the tags whose regions are prompts of a smart tool, not masks
    aliases  the label of each `value` that has another `alias`: results contain either
    colors   the `background` of each label that has one, as typed in the label config. Only pictures depend on it
    smart    whether the config has a smart tool. Masks do not depend on it
    """

    image_value: str
    tags: tuple[Tag, ...]
    objects: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    colors: Mapping[str, str] = field(default_factory=dict, compare=False)
    smart: bool = field(default=False, compare=False)

    @property
    def image(self) -> str:
        return self.tags[0].to_name

    @property
    def labels(self) -> tuple[str, ...]:
        """The distinct labels in config order; class i + 1 of a mask is labels[i]."""
        return tuple(dict.fromkeys(label for tag in self.tags for label in tag.labels))

    def tag_of(self, label: str) -> Tag:
        """The tag for our own masks of `label`: the first of KINDS that has it."""
        return next(tag for tag in self.tags if label in tag.labels)

    @property
    def key(self) -> str:
        """Changes whenever something changes that masks or their encoding depend on."""
        return fingerprint(self._json())

    def reading_key(self, renames: Renames) -> str:
        """Changes whenever annotations have to be read again."""
        return fingerprint(self._json(), dict(renames.now), READING)

    def to_json(self) -> str:
        return self._json(colors=self.colors, smart=self.smart)

    def _json(self, **more: Any) -> str:
        rows = [[t.name, t.kind, t.to_name, t.labels, *([t.labels_tag] if t.labels_tag else [])] for t in self.tags]
        extra = {
            "objects": [o for o in self.objects if o != self.image],
            "prompts": self.prompts,
            "aliases": self.aliases,
            **more,
        }
        extra = {key: value for key, value in extra.items() if value}
        return json.dumps([self.image_value, rows, *([extra] if extra else [])])

    @classmethod
    def from_json(cls, text: str) -> LabelConfig | None:
        """The config that `to_json` wrote; None for the empty text. Raises DamagedRecords for anything else."""
        if not text:
            return None
        with _recorded():
            image_value, rows, *more = parse_json(text)
            tags = tuple(Tag(n, kind, to, tuple(labels), *rest) for n, kind, to, labels, *rest in rows)
            extra = more[0] if more else {}
            objects = (tags[0].to_name, *extra.get("objects", ()))
            prompts, aliases, colors = (extra.get(name, {}) for name in ("prompts", "aliases", "colors"))
            _check_texts(image_value, *objects, *prompts, *aliases, *aliases.values(), *colors, *colors.values())
            _check_texts(*(text for t in tags for text in (t.name, t.kind, t.to_name, t.labels_tag, *t.labels)))
            return cls(image_value, tags, objects, tuple(prompts), aliases, colors, bool(extra.get("smart")))

    @classmethod
    def from_parsed(
        cls, parsed: Mapping[str, Any], project: int, *, image: str = "", smart: Iterable[str] = ()
    ) -> LabelConfig:
        """Read Label Studio's own `parsed_label_config`.

        image  name of the `<Image>` tag to use; "": the one of the first tag that draws masks
        smart  names of the control tags that a smart tool uses, see `smart_tags`

        Raises NotSegmentable, with what to add and where, when the config cannot draw masks on an image.
        """
        found = list(_drawing(parsed))
        images = list(dict.fromkeys((tag.to_name, key) for key, tag in found))
        if image and image not in dict(images):
            names = ", ".join(repr(name) for name, _ in images) or "none"
            raise NotSegmentable(
                f"project {project}: the setting image is {image!r}, but no tag that draws masks points to an <Image> "
                f"of that name. Images with such tags: {names}. Correct the setting, or the label config {WHERE}."
            )
        if not found:
            raise NotSegmentable(f"project {project}: {_lacking(parsed)}")
        name, image_value = next((i for i in images if i[0] == image), images[0])
        tags = [tag for _, tag in found if tag.to_name == name]
        drawn = [tag for tag in tags if tag.kind in KINDS[:3] or tag.name not in smart]
        shapes = {name for tag in drawn for names in label_names(parsed, tag.labels_tag or tag.name) for name in names}
        prompts = tuple(
            tag.name
            for tag in tags
            if tag.kind in KINDS[3:]
            and tag.name in smart
            and all(names & shapes for names in label_names(parsed, tag.labels_tag or tag.name))
        )
        tags = sorted((t for t in tags if t.name not in prompts), key=lambda t: KINDS.index(t.kind))  # stable
        objects = tuple(dict.fromkeys([name, *(o for tag in parsed.values() for o in tag.get("to_name") or ())]))
        named = _aliases(parsed, tags), _colors(parsed, tags)
        config = cls(image_value, tuple(tags), objects, prompts, *named, smart=bool(smart))
        if len(config.labels) > MAX_LABELS:
            raise NotSegmentable(
                f"project {project}: the label config has {len(config.labels)} mask labels; a model can learn at most "
                f"{MAX_LABELS}. Remove some {WHERE}."
            )
        if long := next((label for label in config.labels if len(label) > LABEL_LENGTH), ""):
            raise NotSegmentable(
                f"project {project}: the label that begins with {long[:40]!r} has {len(long):,} characters; at most "
                f"{LABEL_LENGTH:,} are possible. Shorten it {WHERE}."
            )
        return config


def unknown_classes(known: str, labels: Sequence[str], renames: Renames) -> frozenset[int]:
    """The class numbers of the labels that an annotator could not draw, as the label config did not have them.

    known  JSON of the labels that it had then and of those drawn; "": not recorded, so all of them count as known
    """
    if not known:
        return frozenset()
    with _recorded():
        had = {renames.label(name) for name in parse_json(known)}
    return frozenset(number for number, label in enumerate(labels, start=1) if label not in had)


def label_names(parsed: Mapping[str, Any], tag: str) -> list[set[str]]:
    """Of each label of a tag: its value, and its alias if it has one."""
    found = parsed.get(tag) or {}
    attributes = found.get("labels_attrs") or {}
    return [{label, str((attributes.get(label) or {}).get("value") or label)} for label in found.get("labels") or ()]


def _attributes(parsed: Mapping[str, Any], tags: Sequence[Tag]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every label of the tags and its attributes. Label Studio lists a label with an alias under the alias."""
    for tag in tags:
        found = parsed[tag.labels_tag or tag.name].get("labels_attrs") or {}
        yield from ((label, found.get(label) or {}) for label in tag.labels)


def _colors(parsed: Mapping[str, Any], tags: Sequence[Tag]) -> dict[str, str]:
    """The `background` of each label that has one."""
    given = [(label, str(more["background"])) for label, more in _attributes(parsed, tags) if more.get("background")]
    return dict(reversed(given))  # the first tag decides


def _aliases(parsed: Mapping[str, Any], tags: Sequence[Tag]) -> dict[str, str]:
    """The alias of every label value that has one."""
    pairs = ((str(more.get("value") or label), label) for label, more in _attributes(parsed, tags))
    return {value: label for value, label in pairs if value != label}


def _drawing(parsed: Mapping[str, Any]) -> Iterator[tuple[str, Tag]]:
    """(key of the image, tag) for every tag that draws masks on an image, and every image it points to."""
    outer = [(name, tag) for name, tag in parsed.items() if tag.get("type") == "Labels" and tag.get("labels")]
    for name, tag in parsed.items():
        kind = DRAWING_TAGS.get(tag.get("type", ""))
        names, items = tag.get("to_name") or (), tag.get("inputs") or ()
        if kind is None or len(names) != len(items):  # Label Studio leaves out what it does not find
            continue
        for to_name, item in zip(names, items, strict=True):
            if item.get("type") != "Image" or not item.get("value") or _is_repeated(tag):
                continue
            if tag.get("labels"):
                yield item["value"], Tag(name, kind, to_name, tuple(tag["labels"]))
                continue
            for labels_name, labels in outer:
                if to_name in labels["to_name"]:
                    yield item["value"], Tag(name, kind, to_name, tuple(labels["labels"]), labels_name)


def _lacking(parsed: Mapping[str, Any]) -> str:
    """What a config without a usable drawing tag has, and what to add."""
    drawing = [name for name, tag in parsed.items() if tag.get("type") in DRAWING_TAGS]
    if why := _unsupported_image([parsed[name] for name in drawing]):
        return f"in the label config, {drawing[0]!r} {why} {WHERE}."
    if drawing:
        return (
            f"{drawing[0]!r} in the label config has no labels or does not point to an image. Give it at least one "
            f'<Label value="..."/> and the toName of an <Image name="image" value="$image"/> {WHERE}.'
        )
    types = ", ".join(dict.fromkeys(str(tag.get("type")) for tag in parsed.values()))
    has = f"It has {types}. " if types else ""
    return (
        f"the label config has no tag that draws masks (BrushLabels, BitmaskLabels, PolygonLabels, EllipseLabels or "
        f'RectangleLabels). {has}Add <BrushLabels name="tag" toName="image"><Label value="Lung"/></BrushLabels> beside '
        f'<Image name="image" value="$image"/> {WHERE}.'
    )


def smart_tags(config: str) -> set[str]:
    """Names of the control tags with `smart="true"` or `smartOnly="true"` in the text of a label config."""
    if not config:
        return set()
    return {tag.get("name", "") for tag in ElementTree.fromstring(config).iter() if is_smart(tag)}


def is_smart(tag: ElementTree.Element) -> bool:
    """Whether a control tag has `smart="true"` or `smartOnly="true"`."""
    return "true" in (tag.get("smart"), tag.get("smartOnly"))


def silent_smart_tags(config: str) -> set[str]:
    """Names of brushes that take the place of the smart tools in the text of a label config, but ask for nothing.

    In Label Studio, every control tag is a smart tool unless it has smart="false"; a brush never asks.
    """
    if not smart_tags(config):
        return set()
    brushes = ("BrushLabels", "BitmaskLabels", "Brush", "Bitmask")
    found = [tag for tag in ElementTree.fromstring(config).iter() if tag.tag in brushes]
    return {tag.get("name", "") for tag in found if tag.get("smart") != "false"}


def data_keys(config: str) -> set[str]:
    """The keys of task data that the tags of a label config (its text) show: `a` for value="$a", "$a.b" and "$a[0]"."""
    if not config:
        return set()
    values = (value for tag in ElementTree.fromstring(config).iter() for value in tag.attrib.values())
    return {found[1] for value in values if (found := re.match(r"\$([A-Za-z_]\w*)", value))}


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
