"""The commands of `scanqueue`, one module for each group; `backend.cli` registers them."""
