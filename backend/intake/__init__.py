"""Scans from disk into a Label Studio project: `scanqueue import`.

    files   walk and sniff            in worker processes, header only
    group   into sources              one volume or one picture each
    plan    who it is, what is missing   pseudonyms, slice numbers; Label Studio's tasks are the truth
    work    read, window, write PNGs  in worker processes, a few sources at a time
    deliver upload or local files, then tasks, each (scan, axis, slice) once

What leaves this machine are pictures and what `plan.task_data` lists. Names, ids, dates, paths and instance UIDs stay
in the file of identities (backend/intake/identities.py) and in the memory of these processes.
"""
