"""Masks in: the masks that a lab already has become annotations or pre-annotations of imported scans."""
