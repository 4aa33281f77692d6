"""Five kinds of pools on which the screen compares strategies: two curated sets, near-duplicates, a mixture, slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
from numpy.typing import NDArray

from backend.learning.embedders import open_embedder
from backend.learning.patch_features import PatchFeatures
from backend.learning.ridge_head import PatchPool
from backend.learning.weights import BUILTIN
from backend.simulate.labelled import read_groups, read_labelled
from backend.simulate.plan import Split, split

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CLIPS, FRAMES = 24, 50  # clips made, frames of each
POOL_CLIPS, SINGLES = 12, 150  # of a pool of near-duplicates
MIXED = {"busi": 480, "chest": 24, "hippocampus": 8}
MIXED_TEST = 40  # scans of each kind
VOLUMES, POOL_VOLUMES = 40, 20
TEST_SHARE = 0.4
SOURCES = ("busi", "chest", "hippocampus", "clips")
LABELS = ("lesion", "lungs", "hippocampus")
LABEL_OF = {"busi": 0, "chest": 1, "hippocampus": 2, "clips": 0}


@dataclass(frozen=True)
class Bank:
    """All scans. Each source has a label of its own: lesion, lungs, hippocampus.

    source  number of the source, in the order of SOURCES
    groups  equal for near-duplicates, frames of one clip and slices of one volume, never both in pool and test
    """

    names: list[str]
    scans: PatchPool
    embeddings: NDArray[np.float32]
    source: NDArray[np.intp]
    groups: NDArray[np.intp]

    def rows(self, source: str) -> NDArray[np.intp]:
        return np.flatnonzero(self.source == SOURCES.index(source))


@dataclass(frozen=True)
class Kind:
    """A kind of pool.

    split  draws pool and test for a seed
    units  (N,) what the strategies know: equal for scans of one patient or volume
    """

    name: str
    split: Callable[[int], Split]
    units: NDArray[np.intp]


def bank(folder: Path, said: Callable[[str], None]) -> Bank:
    """The scans with their features, computed once and kept in `folder`."""
    if not (folder / "groups.npy").exists():
        said("features of all scans")
        folder.mkdir(parents=True, exist_ok=True)
        names, images, masks, source, groups = all_scans()
        PatchPool.build(PatchFeatures("cpu"), images, masks, len(LABELS)).save(folder)
        np.save(
            folder / "embeddings.npy", open_embedder(BUILTIN, weights_dir=None, device="cpu").embedder.embed(images)
        )
        np.save(folder / "names.npy", np.array(names))
        np.save(folder / "source.npy", source)
        np.save(folder / "groups.npy", groups)
    stored, embeddings, source, groups = (
        np.load(folder / f"{name}.npy") for name in ("names", "embeddings", "source", "groups")
    )
    return Bank(stored.tolist(), PatchPool.load(folder), embeddings, source, groups)


def all_scans() -> tuple[list[str], list[Any], list[Any], NDArray[np.intp], NDArray[np.intp]]:
    """(names, images, masks with the class of each label, source, groups) of a `Bank`."""
    sources = _sources()
    source = np.repeat(np.arange(len(SOURCES)), [len(part[0]) for part in sources])
    masks = [mask for part in sources for mask in part[2]]
    return (
        [name for part in sources for name in part[0]],
        [image for part in sources for image in part[1]],
        [mask * np.uint8(LABEL_OF[SOURCES[s]] + 1) for mask, s in zip(masks, source, strict=True)],
        source,
        np.concatenate([part[3] + 10_000 * part[4] for part in sources]),
    )


def _sources() -> list[tuple[list[str], list[Any], list[Any], NDArray[np.intp], int]]:
    """(names, images, masks of 0 and 1, groups, number of the group numbering) of each source."""
    busi = read_labelled(SHARED / "busi_ultrasound" / "images", SHARED / "busi_ultrasound" / "masks")
    chest = read_labelled(SHARED / "montgomery_cxr" / "images", SHARED / "montgomery_cxr" / "masks")
    pairs = f"{SHARED / 'busi_ultrasound' / 'near_duplicates.csv'}:name_a,name_b"
    groups = read_groups([pairs], busi.names)
    names, images, masks, base = _clips(busi.names, busi.images, busi.masks)
    return [
        (list(busi.names), list(busi.images), list(busi.masks), groups, 0),
        (list(chest.names), list(chest.images), list(chest.masks), np.arange(len(chest)), 1),
        (*hippocampus(), 2),
        (names, images, masks, groups[base], 0),
    ]


def hippocampus() -> tuple[list[str], list[Any], list[Any], NDArray[np.intp]]:
    """All axial slices of some volumes; both parts of the hippocampus as one label."""
    names, images, masks, groups = [], [], [], []
    files = sorted((SHARED / "msd_hippocampus" / "images").glob("*.nii.gz"))
    for group, row in enumerate(sorted(np.random.default_rng(0).choice(len(files), VOLUMES, replace=False))):
        loaded: Any = nibabel.load(files[row])
        mask: Any = nibabel.load(SHARED / "msd_hippocampus" / "masks" / files[row].name)
        values = np.asarray(loaded.dataobj, dtype=np.float64)
        low, high = np.percentile(values, [0.5, 99.5])
        gray = (np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
        drawn = (np.asarray(mask.dataobj) > 0).astype(np.uint8)
        for z in range(gray.shape[2]):
            names.append(f"{files[row].name.removesuffix('.nii.gz')}.{z}")
            images.append(np.ascontiguousarray(np.rot90(gray[:, :, z])))
            masks.append(np.ascontiguousarray(np.rot90(drawn[:, :, z])))
            groups.append(group)
    return names, images, masks, np.array(groups)


def _clips(names: Sequence[str], images: Any, masks: Any) -> tuple[list[str], list[Any], list[Any], NDArray[np.intp]]:
    """Clips from single scans: each frame is the scan under a probe that drifts slightly, with noise of its own."""
    random = np.random.default_rng(1)
    found: tuple[list[str], list[Any], list[Any], list[int]] = ([], [], [], [])
    for base in random.choice(len(names), CLIPS, replace=False):
        image, mask = images[base], masks[base]
        height, width = mask.shape
        state: Any = np.zeros(5)  # degrees, shift in x and y, zoom, brightness
        step = np.array([0.8, 0.006 * width, 0.006 * height, 0.008, 2.0])
        for frame in range(FRAMES):
            state = 0.95 * state + random.normal(0, 1, 5) * step
            matrix: Any = cv2.getRotationMatrix2D((width / 2, height / 2), state[0], 1 + state[3])
            matrix[:, 2] += state[1:3]
            moved = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
            noisy = np.clip(moved + state[4] + random.normal(0, 4, moved.shape), 0, 255)
            found[0].append(f"{names[base]}.{frame}")
            found[1].append(noisy.astype(np.uint8))
            found[2].append(cv2.warpAffine(mask, matrix, (width, height), flags=cv2.INTER_NEAREST))
            found[3].append(int(base))
    return found[0], found[1], found[2], np.array(found[3])


def kinds(bank: Bank) -> list[Kind]:
    """The five kinds of pools."""
    single, volumes = np.arange(len(bank.names)), bank.groups

    def curated(source: str) -> Callable[[int], Split]:
        rows = bank.rows(source)
        number = np.unique(bank.groups[rows], return_inverse=True)[1]

        def draw(seed: int) -> Split:
            part = split(number, TEST_SHARE, seed)
            return Split(rows[part.pool], rows[part.test])

        return draw

    return [
        Kind("chest radiographs", curated("chest"), single),
        Kind("breast ultrasound", curated("busi"), single),
        Kind("near-duplicates", lambda seed: _near_duplicates(bank, seed), single),
        Kind("mixture", lambda seed: _mixture(bank, seed), single),
        Kind("slices", lambda seed: _slices(bank, seed), volumes),
    ]


def _near_duplicates(bank: Bank, seed: int) -> Split:
    """All frames of some clips, and single scans; tested on single scans of other patients."""
    random = np.random.default_rng([seed, 1])
    frames, busi = bank.rows("clips"), bank.rows("busi")
    clips = random.choice(np.unique(bank.groups[frames]), POOL_CLIPS, replace=False)
    free = random.permutation(busi[~np.isin(bank.groups[busi], clips)])
    _, first = np.unique(bank.groups[free], return_index=True)
    singles = free[np.sort(first)[:SINGLES]]
    test = free[~np.isin(bank.groups[free], bank.groups[singles])]
    return Split(np.sort(np.concatenate([frames[np.isin(bank.groups[frames], clips)], singles])), np.sort(test))


def _mixture(bank: Bank, seed: int) -> Split:
    """Many scans of one kind, few of two others; tested on as many of each kind, if there are."""
    random = np.random.default_rng([seed, 2])
    pool, test = [], []
    for source, count in MIXED.items():
        rows = random.permutation(bank.rows(source))
        if source == "hippocampus":  # one slice of a volume
            rows = rows[bank.scans.has[rows].any(axis=1)]
            rows = rows[np.sort(np.unique(bank.groups[rows], return_index=True)[1])]
        taken = rows[:count]
        pool.append(taken)
        test.append(rows[count:][~np.isin(bank.groups[rows[count:]], bank.groups[taken])][:MIXED_TEST])
    return Split(np.sort(np.concatenate(pool)), np.sort(np.concatenate(test)))


def _slices(bank: Bank, seed: int) -> Split:
    """All slices of some volumes; tested on those of the others."""
    rows = bank.rows("hippocampus")
    volumes = np.random.default_rng([seed, 3]).permutation(np.unique(bank.groups[rows]))
    inside = np.isin(bank.groups[rows], volumes[:POOL_VOLUMES])
    return Split(rows[inside], rows[~inside])
