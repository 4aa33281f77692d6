"""The status of a project: the same object for the command line, the page and the JSON API."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np

from backend.errors import BadSetting, CannotTrain, NotKnown
from backend.facts import DELETED, DISCONNECTED, RECENT, annotators, round_of, version_name
from backend.label_config import LabelConfig, Renames
from backend.learning.averages import of_model, of_shown, of_trial, summarise
from backend.learning.clicks import best_tool
from backend.loop.new_labels import COULD_SHOW
from backend.loop.project_settings import project_settings, row_settings
from backend.loop.publication import beginnings, depth_by_knowledge, published_part
from backend.records.maps import read_map
from backend.records.quick_masks import PROJECT_ROW
from backend.records.rounds import Pick
from backend.records.scans import PROBLEM_RETRY
from backend.records.stages import Recent
from backend.records.store import Store
from backend.settings import ProjectSettings
from backend.web.corrections import lately
from backend.web.legend import label_names
from backend.web.problems import FEW, grouped
from backend.web.texts import text, texts
from sampling import Point, stopping_hint

ROUNDS = 5000  # summaries of rounds kept in memory
COMPARED = ("dice", "hd", "hd95", "unit", "shown_empty", "label_empty", "per_label")  # columns of the table `shown`


def describe(store: Store, project: int) -> dict[str, Any] | None:
    """The status of a project; None when it is not known here.

    `labels` are those of the label config; `lost_labels` those that it lost and annotations have, while nobody has said
    why. `image` names the <Image> tag in use where controls point to several objects; "" where they do not.

    A round counts from the moment Label Studio serves it; until then the phase is "publishing". `queue` lists the
    tasks in the queue, in order. Distances are in `unit`. `stopping` advises whether more labels are worth it
    (`sampling.Hint`); None before the first model and when no scan is left. `control` is the newest comparison with
    the control group (`version` says when it was made); None before the first. `no_training` says why no training
    can be requested; "" if it can. `quick` says what the quick model draws with: `labels`, the expected `dice`, and
    whether its masks are `hidden`, as that is too low; None when it draws nothing. `waiting` scans are not in the order
    yet: they are read or scored first. `clicks`: see `corrections.lately`.
    """
    row = store.project(project)
    if row is None:
        return None
    counts = store.counts(project)
    newest, latest_round = store.latest_round(project), store.latest_round(project, served=True)
    models = store.model_qualities(project)
    active = next((m for m in models if m["version"] == row["active"]), None)
    job = store.progress(project)
    phase = "training" if job and job["step"].startswith("training") else row["phase"]
    if phase in ("cold_start", "active") and newest is not None and newest["published_at"] is None:
        phase = "publishing"
    problems = [{"task": task, "what": what} for task, what in store.problems(project)]
    problems += [{"task": task, "what": what} for task, *both in store.remarks(project) for what in both if what]
    latest = latest_round["n"] if latest_round else None
    config = LabelConfig.from_json(row["config"])
    lost = store.lost_labels(project, Renames.from_json(row["label_renames"]))
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
        "labelled_empty": store.count_empty(project),
        "embedder": {"name": row["embedder"], "why": row["embedder_why"]},
        "validation": of_model(active) if active else summarise([]),
        "shown": shown_summary(store, project, version_name(latest)) if latest is not None else summarise([]),
        "queue": [p.task for p, _ in served(store, project)],
        "job": job,
        "no_training": training_objection(row["phase"], row["reason"], counts),
        "control": _compared(models),
        "stopping": stopping(models, counts["open"], settings_of(store, project)),
        "quick": _quick(store, project, newest) if active is None else None,
        "clicks": lately(store, project),
        "studio_url": row["studio_url"],
        "left_out": counts["left_out"],
        "waiting": counts["waiting"] if newest is not None else 0,
        "problems": sorted(problems, key=lambda p: p["task"]),
        "overlap": row["overlap"],
        "labels": list(config.labels) if config else [],
        "lost_labels": [{"label": name, "annotations": n} for name, n in lost.items()],
        "image": config.image if config and len(config.objects) > 1 else "",
        "problem_groups": [group | {"tasks": group["tasks"][:FEW]} for group in grouped(problems)],
    }


def _quick(store: Store, project: int, newest: Mapping[str, Any] | None) -> dict[str, Any] | None:
    last = store.quick_mask(project, PROJECT_ROW)
    if newest is None or last is None or last["version"] != version_name(newest["n"]) or last["dice"] is None:
        return None  # also for a single label, or if nothing is drawn
    return {"labels": last["learnt"], "dice": last["dice"], "hidden": not last["drawn"]}


def training_objection(phase: str, reason: str, counts: Mapping[str, int]) -> str:
    """Why no training can be requested for a project in this phase; "" if it can."""
    if phase in ("blocked", DISCONNECTED, DELETED):
        return text(f"train.{phase}", reason=reason)
    if not counts["scans"]:
        return text("train.empty")
    return "" if counts["labelled"] else text("train.unlabelled")


def check_trainable(store: Store, project: int) -> None:
    """Raises CannotTrain with the reason if no training can be requested."""
    row = store.project(project)
    if row is not None and (why := training_objection(row["phase"], row["reason"], store.counts(project))):
        raise CannotTrain(why)


def _compared(models: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """{version, labels, ours: {dice, ...}, control: {dice, ...}} of the newest control trial."""
    found = [{"version": m["version"], **of_trial(m["details"]["arms"])} for m in models if "arms" in m["details"]]
    return found[-1] if found else None


def stopping(models: Sequence[Mapping[str, Any]], left: int, settings: ProjectSettings) -> dict[str, Any] | None:
    """`sampling.stopping_hint` from the models with the present labels, and the agreement of the last two by label."""
    if not models or not left:
        return None
    judged = [(m["learnt"], of_model(m)) for m in models if m["labels"] == models[-1]["labels"]]
    points = [Point(labels, found["dice"], found["n"]) for labels, found in judged if labels and found["n"]]
    same = models[-1]["details"].get("agreement", {})
    hint = stopping_hint(points, left=left, agreement=same.get("dice"), seed=settings.seed)
    return asdict(hint) | {"agreement_per_label": same.get("per_label", {})}


def served(store: Store, project: int) -> list[tuple[Pick, int]]:
    """The queue: unlabelled picks of the published part of the order, with their places."""
    row = store.project(project)
    latest = store.latest_round(project, served=True)
    if row is None or latest is None or row["phase"] == "done":  # skipped scans may be left, which nobody is served
        return []
    people = annotators(store.authors(project, RECENT))
    picks, reach = latest["picks"], latest["reach"]
    carried = [task for task in latest["carried"] if task in picks.members]
    now = time.time()
    counts = store.count_scans(project, Recent(now - PROBLEM_RETRY, now), "slice", ())
    settings = depth_by_knowledge(settings_of(store, project), counts, people)
    tasks: list[int] = []
    for beginning in beginnings(picks.tasks, settings, reach):
        waiting = {task: bool(skipped) for task, skipped in store.waiting(project, (*beginning, *carried))}
        length, tasks = published_part(
            beginning, carried, waiting, settings, people, lambda task: store.siblings(project, task), reach
        )
        if length < len(beginning):
            break
    wanted = set(tasks)
    return [(p, place) for place, p in enumerate(picks, start=1) if p.task in wanted]


def settings_of(store: Store, project: int) -> ProjectSettings:
    """The project's settings; the defaults when the given ones are invalid (the status reports why)."""
    row = store.project(project)
    try:
        return row_settings(dict(row)) if row else project_settings("")
    except BadSetting:
        return project_settings("")


def queue(store: Store, project: int) -> list[dict[str, Any]]:
    """`served` with the reason for each pick and the terms of its score."""
    alpha = settings_of(store, project).alpha
    return [explained(pick, place, alpha) for pick, place in served(store, project)]


def explained(pick: Pick, place: int, alpha: float) -> dict[str, Any]:
    """A pick with its place and the reason for it."""
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
    """The reason for a pick, without names of methods."""
    words = _words(pick.reason)
    where = text("note.cluster", number=pick.cluster + 1) if pick.cluster is not None else ""
    return f"{words[:1].upper()}{words[1:]}{where}."


def why(pick: Pick, alpha: float) -> str:
    """The reason for a pick, with the name of the method and its numbers."""
    if pick.reason == "paper" and pick.score is not None:
        return f"S = {pick.score:.2f}: entropy {pick.entropy:.2f}, distance {pick.distance:.2f} (alpha {alpha:g})"
    words = _words(pick.reason)
    group = f" (cluster {pick.cluster + 1})" if pick.cluster is not None else ""
    if words.startswith(pick.reason):  # with the name of a label
        return words + group
    return f"{pick.reason}{group}: {words}"


def _words(reason: str) -> str:
    if reason.startswith(COULD_SHOW):
        return text("why.could_show", label=reason.removeprefix(COULD_SHOW))
    return texts().get(f"why.{reason}", reason)


def map_points(store: Store, project: int) -> list[dict[str, Any]]:
    """Every scan on the map: {task, x, y, cluster, labelled, rank, reason}; rank in the order that is served now."""
    row = store.project(project)
    found = read_map(store, project, row["embedder"]) if row else None
    if row is None or found is None:
        return []
    where = {d: found[1][i] for i, d in enumerate(found[0])}
    clusters = {p.task: p.cluster for picks in store.orders(project) for p in picks if p.cluster is not None}
    latest = store.latest_round(project, served=True)
    places = {p.task: (i, p) for i, p in enumerate(latest["picks"], start=1)} if latest else {}
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


def round_list(store: Store, project: int, newest: int = 0) -> list[dict[str, Any]]:
    """The `newest` rounds (0: all), oldest first.

    {round, model_version, model, labels, validation, shown, accepted, remark, control, ...}:

    settings   the settings of its order; {} for rounds of older versions
    activated  when and by whom its model was activated: {version, at, user}
    control    {version, labels, ours, control}: a model trained on `labels` chosen scans and one trained on as many
               random scans, evaluated on the same held-out scans; None without a control trial
    """
    models = {m["version"]: m for m in store.model_summaries(project, newest and newest + 1)}
    rounds = store.rounds(project, picks=False, newest=newest)
    shown = shown_summaries(store, project, [version_name(r["n"]) for r in rounds] if newest else ())
    activated = [{k: a[k] for k in ("version", "at", "user")} for a in store.activations(project)]
    answers = []
    for r in rounds:
        version = version_name(r["n"])
        trained = models.get(version)
        drawn = models.get(r["model"])
        answers.append(
            {
                "round": r["n"],
                "model_version": version,
                "model": r["model"] or None,
                "labels": r["labels"],
                "validation": of_model(drawn) if drawn else summarise([]),
                "shown": shown.get(version) or summarise([]),
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


def model_list(store: Store, project: int, newest: int = 0) -> list[dict[str, Any]]:
    """The `newest` models and the active one (0: all), oldest first.

    {version, active, kept, accepted, labels, trained_on, validation, remark, created_at, ...}:

    kept      whether its checkpoint still exists, so that it can be activated
    history   its training: {step, loss, learning_rate, dice, seconds} regularly; dice is that on the held-out scans,
              None once they are learnt from
    champion  the model that was active before, or the "quick model", on the same scans: {version, dice, ...,
              difference}; None if there was none. `difference` is that of the new model minus this one, see
              `comparison.Difference`
    clicks    the tools for clicks on held-out scans: {n, clicks, network, geodesic, ..., seconds, best}, the Dice of
              each from blank after so many simulated clicks; None without smart tools. The best one answers
    """
    row = store.project(project)
    return [
        {
            "version": m["version"],
            "active": row is not None and m["version"] == row["active"],
            "kept": store.has("models", m["fingerprint"]),
            "accepted": bool(m["accepted"]),
            "labels": m["labels"],
            "trained_on": m["learnt"],
            "validation": of_model(m),
            "remark": m["remark"],
            "created_at": m["created_at"],
            "history": m["details"].get("history", []),
            "champion": m["details"].get("champion"),
            "clicks": _tools((m["details"].get("clicks") or {}).get("compared")),
        }
        for m in store.model_summaries(project, newest)
        if round_of(m["version"]) is not None
    ]


def _tools(compared: dict[str, Any] | None) -> dict[str, Any] | None:
    return compared | {"best": best_tool(compared)} if compared else None


def held_out(store: Store, project: int, version: str) -> list[dict[str, Any]]:
    """The scans that a model was evaluated on: {task, dice, hd95, truth_empty, drawn_empty, classes, ...}.

    Raises NotKnown.
    """
    found = store.model(project, version)
    if found is None:
        there = ", ".join(name for name, _ in store.model_versions(project)) or "none"
        raise NotKnown(f"project {project} has no model {version!r}; available: {there}.")
    return list(found["details"].get("held_out", []))


def shown_summary(store: Store, project: int, version: str) -> dict[str, Any]:
    """`summarise` over the scans whose mask of `version` was shown and then submitted."""
    return summary(store.shown_columns(project, COMPARED, [version]), label_names(store, project))


def shown_summaries(store: Store, project: int, versions: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """`shown_summary` of those of these versions (default: of all) that have any such scan."""
    names, rows = label_names(store, project), defaultdict(list)
    for row in store.shown_columns(project, ("version", *COMPARED), versions):
        rows[row[0]].append(row[1:])
    return {version: summary(found, names) for version, found in rows.items()}


def summary(rows: Iterable[tuple[Any, ...]], names: tuple[str, ...]) -> dict[str, Any]:
    """The agreement of shown and submitted masks in these records (COMPARED), see `averages.summarise`."""
    found = _summarised(tuple(map(tuple, rows)), names)
    return found | {"per_label": {name: dict(one) for name, one in found["per_label"].items()}}


@lru_cache(maxsize=ROUNDS)
def _summarised(rows: tuple[tuple[Any, ...], ...], names: tuple[str, ...]) -> dict[str, Any]:
    """Cached, because the rows of older rounds no longer change."""
    return summarise([of_shown(dict(zip(COMPARED, row, strict=True)), names) for row in rows])
