"""One project as people and programs see it: the same object for the command and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from backend.errors import BadSetting
from backend.facts import annotators, round_of, version_name
from backend.loop.project_settings import project_settings, row_settings
from backend.loop.publication import published_part
from backend.records.maps import read_map
from backend.records.rounds import Pick
from backend.records.store import Store
from backend.settings import ProjectSettings
from sampling import Point, stopping_hint

WHY = {
    "paper": "the model is unsure of it, and it is unlike what was chosen before it; S(i) weighs the two",
    "medoid": "typical of its cluster on the map",
    "farthest": "unlike the scans of its cluster chosen before it",
    "random": "drawn at random",
    "control": "drawn at random, as a control",
    "wished": "somebody asked for it to be labelled next",
    "begun": "the rest of a scan that was begun, which comes to its end first",
    "skipped": "skipped by an annotator, so it comes last",
    "blank": "all of its pixels are alike, so it comes last",
    "stratum": "the next of its group, so that every group has its share",
    "representative": "stands for scans that nothing stood for yet",
    "typical": "typical of a part of the pool that has no label yet",
    "covering": "has many others close by that nothing covers yet",
    "central": "near the centre of its cluster",
    "entropy": "the model is unsure of it",
    "power-entropy": "drawn with a chance that grows with how unsure the model is",
    "clasp": "the model is unsure of one of its labels, and the labels take turns",
    "stochastic-batches": "one of a random set of which the model is unsure",
    "badge": "the model is unsure of it, and it is unlike the others chosen",
    "pairwise-dice": "its mask changes when the scan is made brighter, darker or moved",
    "kcenter": "far from everything chosen before it",
    "kcenter-map": "far on the map from everything chosen before it",
    "facility": "stands for scans that nothing stood for yet",
    "facility-map": "stands for scans on the map that nothing stood for yet",
    "diversity": "far on the map from everything chosen before it",
}


def describe(store: Store, project: int) -> dict[str, Any] | None:
    """The status of a project; None when it is not known here.

    `queue` lists the tasks that annotators are served now, in order. Distances are in `unit`. `stopping` says whether
    more labels are expected to be worth it (`sampling.Hint`); None before the first model and when nothing is left.
    `control` compares models of our order and of chance, as of the `version` they were last compared with; None before.
    """
    row = store.project(project)
    if row is None:
        return None
    counts = store.counts(project)
    labels = store.labels(project)
    latest_round = store.latest_round(project)
    models = store.models(project)
    active = next((m for m in models if m["version"] == row["active"]), None)
    job = store.progress(project)
    phase = "training" if job and job["step"].startswith("training") else row["phase"]
    problems = [{"task": task, "what": what} for task, what in store.problems(project)]
    problems += [{"task": r["task"], "what": r["problem"]} for r in labels if r["problem"]]
    problems += [{"task": r["task"], "what": r["remark"]} for r in labels if r["remark"]]
    latest = latest_round["n"] if latest_round else None
    return {
        "project": project,
        "title": row["title"],
        "phase": phase,
        "reason": row["reason"],
        "trouble": store.trouble(project),
        "round": latest,
        "model_version": version_name(latest) if latest is not None else None,
        "model": row["active"] or None,
        "scans": counts["scans"],
        "embedded": counts["embedded"],
        "labelled": counts["labelled"],
        "embedder": {"name": row["embedder"], "why": row["embedder_why"]},
        "validation": active["validation"] if active else _nothing(),
        "shown": shown_summary(store, project, version_name(latest)) if latest is not None else _nothing(),
        "queue": [p.task for p, _ in served(store, project)],
        "job": job,
        "control": _compared(models),
        "stopping": _stopping(models, counts["open"], settings_of(store, project)),
        "studio_url": row["studio_url"],
        "left_out": counts["left_out"],
        "problems": sorted(problems, key=lambda p: p["task"]),
    }


def _compared(models: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """{version, labels, ours: {dice, ...}, control: {dice, ...}} of the newest comparison with chance."""
    found = [{"version": m["version"], **m["details"]["arms"]} for m in models if "arms" in m["details"]]
    return found[-1] if found else None


def _stopping(models: Sequence[Mapping[str, Any]], left: int, settings: ProjectSettings) -> dict[str, Any] | None:
    """`sampling.stopping_hint` from the models that draw the labels of today."""
    if not models or not left:
        return None
    points = [
        Point(len(m["trained_on"]), m["validation"]["dice"], m["validation"]["n"])
        for m in models
        if m["labels"] == models[-1]["labels"] and m["trained_on"] and m["validation"].get("n")
    ]
    same = models[-1]["details"].get("agreement", {}).get("dice")
    hint = stopping_hint(points, round_size=settings.round_size, left=left, agreement=same, seed=settings.seed)
    return asdict(hint)


def served(store: Store, project: int) -> list[tuple[Pick, int]]:
    """What annotators are served now: unlabelled picks of the published part of the order, with their place."""
    row = store.project(project)
    latest = store.latest_round(project)
    if row is None or latest is None:
        return []
    waiting = {task: bool(skipped) for task, skipped in store.waiting(project)}
    people = annotators((r["annotation"], r["completed_by"]) for r in store.labels(project))
    places = {p.task: (p, place) for place, p in enumerate(latest["picks"], start=1)}
    settings, carried = settings_of(store, project), latest["carried"]
    _, tasks = published_part(
        list(places), carried, waiting, settings, people, lambda task: store.siblings(project, task)
    )
    return sorted((places[task] for task in tasks), key=lambda found: found[1])


def settings_of(store: Store, project: int) -> ProjectSettings:
    """The project's settings; the defaults when what was given cannot be used (status says so)."""
    row = store.project(project)
    try:
        return row_settings(dict(row)) if row else project_settings("")
    except BadSetting:
        return project_settings("")


def queue(store: Store, project: int) -> list[dict[str, Any]]:
    """`served` with the reason of each pick in words and the terms of its score."""
    alpha = settings_of(store, project).alpha
    return [explained(pick, place, alpha) for pick, place in served(store, project)]


def explained(pick: Pick, place: int, alpha: float) -> dict[str, Any]:
    """A pick with its place and its reason in words."""
    return {
        "task": pick.task,
        "rank": place,
        "reason": why(pick, alpha),
        "sentence": sentence(pick),
        "kind": pick.reason,
        "score": pick.score,
        "entropy": pick.entropy,
        "distance": pick.distance,
        "cluster": pick.cluster,
    }


def sentence(pick: Pick) -> str:
    """The reason of a pick for somebody who knows no names of methods."""
    text = WHY.get(pick.reason, pick.reason)
    where = f", cluster {pick.cluster + 1} on the map" if pick.cluster is not None else ""
    return f"{text[:1].upper()}{text[1:]}{where}."


def why(pick: Pick, alpha: float) -> str:
    """The reason of a pick with the name of the method and its numbers."""
    if pick.reason == "paper" and pick.score is not None:
        return f"S = {pick.score:.2f}: entropy {pick.entropy:.2f}, distance {pick.distance:.2f} (alpha {alpha:g})"
    text = WHY.get(pick.reason, pick.reason)
    group = f" (cluster {pick.cluster + 1})" if pick.cluster is not None else ""
    return f"{pick.reason}{group}: {text}"


def map_points(store: Store, project: int) -> list[dict[str, Any]]:
    """Every scan on the map: {task, x, y, cluster, labelled, rank, reason}; rank within the current order."""
    row = store.project(project)
    found = read_map(store, project, row["embedder"]) if row else None
    if row is None or found is None:
        return []
    where = {d: found[1][i] for i, d in enumerate(found[0])}
    rounds = store.rounds(project)
    clusters = {p.task: p.cluster for r in rounds for p in r["picks"] if p.cluster is not None}
    places = {p.task: (i, p) for i, p in enumerate(rounds[-1]["picks"], start=1)} if rounds else {}
    points = []
    for s in store.scans(project):
        if s["digest"] not in where:
            continue
        x, y = np.round(where[s["digest"]], 4).tolist()
        rank, pick = places.get(s["task"], (None, None))
        points.append(
            {
                "task": s["task"],
                "x": x,
                "y": y,
                "cluster": clusters.get(s["task"]),
                "labelled": bool(s["annotated"]),
                "rank": rank,
                "reason": pick.reason if pick else None,
            }
        )
    return points


def round_list(store: Store, project: int) -> list[dict[str, Any]]:
    """Oldest first: {round, model_version, model, labels, validation, shown, accepted, remark, control, ...}.

    settings   those that it was ranked with; {} in rounds of older versions
    activated  when and by whom its model was made active: {version, at, user}

    control  {version, labels, ours, control}: a model of so many labels of our order, and one of as many drawn at
             random, on the same held-out scans; None where they were not compared
    """
    models = {m["version"]: m for m in store.models(project)}
    activated = [{k: a[k] for k in ("version", "at", "user")} for a in store.activations(project)]
    answers = []
    for r in store.rounds(project, picks=False):
        version = version_name(r["n"])
        trained = models.get(version)
        drawn = models.get(r["model"])
        answers.append(
            {
                "round": r["n"],
                "model_version": version,
                "model": r["model"] or None,
                "labels": r["labels"],
                "validation": drawn["validation"] if drawn else _nothing(),
                "shown": shown_summary(store, project, version),
                "accepted": bool(trained["accepted"]) if trained else None,
                "remark": trained["remark"] if trained else "",
                "control": _compared([trained]) if trained else None,
                "created_at": r["created_at"],
                "published_at": r["published_at"],
                "settings": r["settings"],
                "activated": [c for c in activated if c["version"] == version],
            }
        )
    return answers


def model_list(store: Store, project: int) -> list[dict[str, Any]]:
    """Oldest first: {version, active, kept, accepted, labels, trained_on, validation, remark, created_at}.

    kept      whether its checkpoint is still there, so that it can be made active
    history   of its training: {step, loss, learning_rate, dice, seconds} at every look at the held-out scans
    champion  the model that was active then, on the same scans: {version, dice, ...}; None when there was none
    held_out  the scans that it was judged on: {task, dice, hd95, classes}
    """
    row = store.project(project)
    return [
        {
            "version": m["version"],
            "active": row is not None and m["version"] == row["active"],
            "kept": store.has("models", m["fingerprint"]),
            "accepted": bool(m["accepted"]),
            "labels": m["labels"],
            "trained_on": len(m["trained_on"]),
            "validation": m["validation"],
            "remark": m["remark"],
            "created_at": m["created_at"],
            "history": m["details"].get("history", []),
            "champion": m["details"].get("champion"),
            "held_out": m["details"].get("held_out", []),
        }
        for m in store.models(project)
        if round_of(m["version"]) is not None
    ]


def shown_summary(store: Store, project: int, version: str) -> dict[str, Any]:
    """Means over the scans whose mask of `version` was shown and then submitted."""
    rows = [s for s in store.shown(project) if s["version"] == version]
    if not rows:
        return _nothing()
    units = {s["unit"] for s in rows}
    alike = len(units) == 1
    return {
        "dice": float(np.mean([s["dice"] for s in rows])),
        "hd95": float(np.mean([s["hd95"] for s in rows])) if alike else None,
        "hd": float(np.mean([s["hd"] for s in rows])) if alike else None,
        "unit": units.pop() if alike else "mixed",
        "n": len(rows),
    }


def _nothing() -> dict[str, Any]:
    return {"dice": None, "hd95": None, "hd": None, "unit": None, "n": 0}
