"""Kinds of scan files that are not read, known by their names, with what to do instead."""

from __future__ import annotations

import mimetypes

_VOLUME = "convert it to NIfTI, for example with SimpleITK, 3D Slicer or nibabel"
_MICROSCOPE = "export it as TIFF, for example with Fiji (Bio-Formats)"
_UNPACK = "unpack it and import the folder"
_FILM = "export its frames as PNG or DICOM"
_ARRAY = "save its images as NIfTI, TIFF or PNG"
ADVICE: dict[str, str] = {
    **dict.fromkeys((".mnc", ".mnc2"), "MINC volume: convert it to NIfTI with mnc2nii"),
    **dict.fromkeys((".par", ".rec"), f"Philips PAR/REC: {_VOLUME}"),
    **dict.fromkeys((".head", ".brik"), "AFNI volume: convert it to NIfTI with 3dAFNItoNIFTI"),
    **dict.fromkeys((".mgh", ".mgz"), "FreeSurfer volume that is damaged: copy it again"),
    **dict.fromkeys((".vtk", ".vti", ".gipl", ".mif", ".mih", ".v", ".ecat", ".bfloat"), f"volume: {_VOLUME}"),
    **dict.fromkeys((".raw", ".zraw", ".img"), f"pixels without their header: add the header file, or {_VOLUME}"),
    **dict.fromkeys((".gii", ".stl", ".obj", ".ply"), "surface, not an image: export the volume that it was made from"),
    **dict.fromkeys((".czi", ".lif", ".nd2", ".oib", ".oif", ".lsm", ".ims", ".vsi"), f"microscopy: {_MICROSCOPE}"),
    **dict.fromkeys((".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".vms"), f"whole slide: tile it, or {_MICROSCOPE}"),
    **dict.fromkeys((".e2e", ".fda", ".fds", ".vol"), "vendor-specific OCT format: export it as DICOM or TIFF"),
    **dict.fromkeys((".tar", ".tgz", ".tbz", ".txz", ".7z", ".rar", ".iso", ".zst"), f"archive: {_UNPACK}"),
    **dict.fromkeys((".mp4", ".avi", ".mov", ".mkv", ".mpg", ".mpeg", ".wmv"), f"film: {_FILM}"),
    **dict.fromkeys((".h5", ".hdf5", ".he5", ".npy", ".npz", ".mat", ".pkl", ".pt", ".zarr"), f"array: {_ARRAY}"),
    **dict.fromkeys((".pdf", ".docx", ".pptx", ".psd", ".eps", ".svg", ".xcf"), "document: export its images as PNG"),
    **dict.fromkeys((".pgm", ".ppm", ".pbm", ".pnm", ".tga", ".exr", ".hdr", ".jxl", ".fits", ".dng", ".cr2", ".nef"),
                    "picture: save it as PNG or TIFF"),
}  # fmt: skip
ARCHIVES = (b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\x28\xb5\x2f\xfd", b"PK\3\4")
_PLAIN = {".txt", ".csv", ".tsv", ".json", ".xml", ".md", ".log", ".yaml", ".yml", ".ini", ".bval", ".bvec", ".dcm", ""}


def suffix(name: str) -> str:
    """The suffix of a file's name in lower case, ".tar.gz" as ".tar"; "" if it has none."""
    parts = name.lower().rsplit(".", 2)
    if len(parts) > 2 and parts[-1] in ("gz", "bz2", "xz") and f".{parts[-2]}" in ADVICE:
        return f".{parts[-2]}"
    return f".{parts[-1]}" if len(parts) > 1 else ""


def public(suffix: str) -> str:
    """The suffix if it is one of a known kind of files, so that it names no patient; else "other"."""
    known = suffix in ADVICE or suffix in _PLAIN or suffix in mimetypes.types_map
    return (suffix or "without suffix") if known else "other"
