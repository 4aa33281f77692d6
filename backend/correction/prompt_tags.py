"""Which tags of a label config take prompts. Label Studio sends regions of one type and label, whatever their tag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from backend.label_config import is_smart


@dataclass(frozen=True)
class PromptTags:
    """
    others  the control tags whose regions are no prompts
    values  of the labels of tags whose regions are prompts, by their aliases: regions contain the alias
    """

    others: tuple[str, ...]
    values: Mapping[str, str] = field(default_factory=dict)


def prompt_tags(config: Any) -> PromptTags | None:
    """From the text of a label config; None if it cannot be read.

    Prompts are the regions of tags with smart="true" or smartOnly="true". Label Studio makes every tag a smart tool
    unless it has smart="false": of a kind of tags without either, those.
    """
    if not isinstance(config, str) or not config or "<!ENTITY" in config:
        return None
    try:
        tags = [tag for tag in ElementTree.fromstring(config).iter() if tag.get("name") and tag.get("toName")]
    except (ElementTree.ParseError, ValueError):
        return None
    smart = [tag for tag in tags if is_smart(tag)]
    kinds = {_kind(tag) for tag in smart}
    smart += [tag for tag in tags if _kind(tag) not in kinds and tag.get("smart") != "false"]
    labels = [label for tag in smart for label in tag.iter("Label")]
    values = {label.get("alias", ""): label.get("value", "") for label in labels if label.get("alias")}
    return PromptTags(tuple(tag.get("name", "") for tag in tags if tag not in smart), values)


def _kind(tag: ElementTree.Element) -> str:
    return tag.tag.removesuffix("Labels")
