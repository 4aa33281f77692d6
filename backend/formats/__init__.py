"""Scans on disk as arrays with their position in the patient, and labels back: DICOM, NIfTI, NRRD, pictures.

Arrays are in *voxel order* (i, j, k), and `affine` maps voxel indices to RAS+ millimetres, as in nibabel. The pixel
at [row, column] of a DICOM slice k is `values[column, row, k]`: i runs along a row. A plain picture (H, W) becomes
(W, H, 1). Colour adds a last axis of 3: RGB, 8 bits.

    facts = [sniff(path) for path in files]             header only, cheap
    for source in group(f for f in facts if f):          one source: one volume or one picture
        volume = read(source)
        slices = cut(volume.geometry, "axial")
        window = choose_window(volume, None)
        picture = to_uint8(slices.take(volume.values, n), window, inverted=volume.inverted)
        ...
        slices.put(labels, n, mask)                      and back, exactly
        write_nifti_labels(path, labels, source, names=("Lung",))

Every error in a file is an `UnreadableFile`, whose `what` contains neither its path nor anything from its header.
"""

from __future__ import annotations

from backend.errors import BadWindow, CannotCut, CannotExport, UnreadableFile
from backend.formats import kinds, packed
from backend.formats.frames import origins
from backend.formats.geometry import AXES, Cut, Geometry, cut
from backend.formats.labels import write_nifti_labels
from backend.formats.mask_volumes import LabelPicture, open_mask
from backend.formats.masks import Grid, MaskFile, MaskMisfit, Segment
from backend.formats.reading import geometry_of, group, read, read_geometry, read_header, sniff
from backend.formats.segmentation import write_dicom_seg
from backend.formats.slices import informative
from backend.formats.source import FileFacts, Header, Source, content_of, is_content
from backend.formats.structure_sets import write_rtstruct
from backend.formats.volume import MAX_VOXELS, Volume, choose_window
from backend.formats.window import VoiTable, Window, to_uint8

__all__ = [
    "AXES",
    "MAX_VOXELS",
    "BadWindow",
    "CannotCut",
    "CannotExport",
    "Cut",
    "FileFacts",
    "Geometry",
    "Grid",
    "Header",
    "LabelPicture",
    "MaskFile",
    "MaskMisfit",
    "Segment",
    "Source",
    "UnreadableFile",
    "VoiTable",
    "Volume",
    "Window",
    "choose_window",
    "content_of",
    "cut",
    "geometry_of",
    "group",
    "informative",
    "is_content",
    "kinds",
    "open_mask",
    "origins",
    "packed",
    "read",
    "read_geometry",
    "read_header",
    "sniff",
    "to_uint8",
    "write_dicom_seg",
    "write_nifti_labels",
    "write_rtstruct",
]
