"""Scans from disk into a Label Studio project: `scanqueue import`.

    files           find files
    slicing         sniff, identify, read, window, write PNGs   in worker processes
    plan            pseudonyms, slice numbers, missing slices
    existing_tasks  what Label Studio already has               each (scan, axis, slice) becomes one task
    delivery        upload, or write local files
    run             all of it in order
    request         the request and the results of an import; `terminal` prints them

Only pictures and the task data of `plan._task_data` leave this machine. Names, ids, dates, paths and instance UIDs
stay in the identities file (backend/intake/identities.py) and in the memory of these processes.
"""
