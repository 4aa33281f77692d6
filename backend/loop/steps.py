"""The vocabulary of the loop: observed facts, stored facts, and the steps that lead from one to the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from backend.facts import Counts, Label, Live, Model, Round, Scan
from backend.fingerprints import fingerprint
from backend.label_config import LabelConfig, Renames
from backend.settings import ProjectSettings

TRAIN, COMPARE, QUICK, MAP = "train", "compare", "quick", "map"  # kinds of work whose attempts are counted
MOST_ATTEMPTS = 3  # that may be cut off before the loop goes on without the work
POOL_GROWTH = 4  # factor by which the pool outgrows the map's fit before a new map is fitted
FEW_ON_MAP = 1000  # scans that are laid out after MOST_ATTEMPTS at more; the others are placed between them
AT_ONCE = 1000  # open scans of each stage that a look considers
FEW = 8  # annotations that are read in a moment


@dataclass(frozen=True)
class CutOff:
    """Work that was begun and cut off: how many `times`, and its size at the first one: the number of labels, or of
    places on a map."""

    times: int
    size: int

    @property
    def too_often(self) -> bool:
        """Whether it is not tried again at this size."""
        return self.times >= MOST_ATTEMPTS

    def objection(self, what: str, labels: int, round_size: int, cure: str) -> str:
        """Why the work `what` on so many labels is left out, and what to do; "" if it is tried."""
        more = self.size + round_size - labels
        if not self.too_often or more <= 0:
            return ""
        return (
            f"{what} {labels} labels was cut off {self.times} times, so scanqueue goes on without it. Most likely its "
            f"memory ran out: {cure}, run fewer workers on the machine, or give the worker more memory; its log says "
            f'more. It is tried again after {more} more labels, or when somebody presses "Start Training".'
        )


def map_key(embedder: str, unit: str) -> str:
    """The key of attempts at a map."""
    return fingerprint(unit, embedder)


@dataclass(frozen=True)
class Seen:
    """Label Studio's side of a project at the last observation.

    scans    those that something may have to be done for: all that are labelled, have priority or are left out; the
             beginning of the latest order; and of those that are not in an order yet, the first of every stage
    counts   the numbers of all scans
    blocked  why nothing can be done; "" normally
    disconnected  why we no longer manage the project; "" while we do
    people   the number of annotators, see `annotators`
    renames  what people said about labels that the label config no longer has
    lost     labels that the config had and no longer has, without an answer yet, and how many annotations have each
    unlisted  number of tasks of a large project that are not recorded yet
    unlisted_labels  number of their annotations
    listed_to  the task id up to which a listing of all tasks has come; None: none is under way
    outdated  tasks whose annotations were read with another config, so that `lost` is not known yet
    """

    project: int
    config: LabelConfig | None
    scans: tuple[Scan, ...]
    labels: tuple[Label, ...]
    live: Live
    blocked: str = ""
    people: int = 0
    counts: Counts = field(default_factory=Counts)
    renames: Renames = field(default_factory=Renames)
    lost: Mapping[str, int] = field(default_factory=dict)
    outdated: frozenset[int] = frozenset()
    unlisted: int = 0
    unlisted_labels: int = 0
    listed_to: int | None = None
    disconnected: str = ""


@dataclass(frozen=True)
class Done:
    """Our side of a project: what is computed and stored.

    settings  with the strategy written out as COLD+MODEL
    fitted    number of images or volumes the map was fitted on; 0 without a map of the current `unit`
    models    the active and the newest model, oldest first
    active    version of the active model; "" before the first
    rounds    the latest round; () before the first
    compared  versions of the models whose comparison with the control is stored
    recipe    fingerprint of the training settings and the seed; "" while no training is requested
    quick     keys of the quick masks that tasks of the latest round show
    first_round  lowest number of a new round: above all that Label Studio has and these records do not know
    served    tasks that were ever in an order, and whether as a control in the last order that contained them; empty
              while no comparison is due
    cut_off   trainings with the present settings that began and did not end, since the last that did
    trials_cut_off  likewise, comparisons of the newest model with the control
    quick_cut_off   likewise, drawings of quick masks
    map_cut_off     likewise, fits of a map for the present embedder and unit
    """

    settings: ProjectSettings
    embedder: str
    fitted: int = 0
    models: tuple[Model, ...] = ()
    active: str = ""
    rounds: tuple[Round, ...] = ()
    compared: frozenset[str] = frozenset()
    served: Mapping[int, bool] = field(default_factory=dict)
    training_requests: int = 0
    recipe: str = ""
    first_round: int = 0
    quick: Mapping[int, str] = field(default_factory=dict)
    cut_off: CutOff | None = None
    trials_cut_off: CutOff | None = None
    quick_cut_off: CutOff | None = None
    map_cut_off: CutOff | None = None

    def no_training(self, labels: int) -> str:
        """Why no model is trained on so many labels; "" if one may be."""
        cure = "set SCANQUEUE_IMAGE_SIZE to a smaller multiple of 32, such as 128"
        begun, size = self.cut_off, self.settings.round_size
        return begun.objection("The training on", labels, size, cure) if begun else ""

    def no_quick_masks(self, labels: int) -> str:
        """Likewise, quick masks."""
        begun, size = self.quick_cut_off, self.settings.round_size
        if begun is None or self.settings.quick_model == "off":
            return ""
        return begun.objection("Drawing quick masks from", labels, size, "set quick_model to off")

    def small_map(self) -> str:
        """Why the map was not fitted on the whole pool; "" if it was."""
        begun = self.map_cut_off
        if begun is None or not begun.too_often:
            return ""
        return (
            f"Laying out the map was cut off {begun.times} times, so scanqueue lays out {FEW_ON_MAP} scans and places "
            "the others between them. Most likely its memory ran out: give the worker more memory. The whole pool is "
            f"tried again when it has grown {POOL_GROWTH} times as large."
        )


@dataclass(frozen=True)
class Listen:
    """Register the project's webhook, with our secret, so that Label Studio reports events."""


@dataclass(frozen=True)
class ListTasks:
    """List more tasks, those with ids above `after`, of a project that is listed in parts."""

    after: int


@dataclass(frozen=True)
class ReadScans:
    """Fetch, decode and embed the images of these tasks."""

    tasks: tuple[int, ...]


@dataclass(frozen=True)
class ReadMasks:
    """Fetch and decode the annotations of these tasks."""

    tasks: tuple[int, ...]


@dataclass(frozen=True)
class FitMap:
    """Fit a new map on the whole pool."""


@dataclass(frozen=True)
class MapScans:
    """Add the scans of these tasks to the existing map."""

    tasks: tuple[int, ...]


@dataclass(frozen=True)
class OpenRound:
    """Rank the pool with `model` ("" for the cold start) and store the order as round n."""

    n: int
    key: str
    model: str
    carried: tuple[int, ...] = ()


@dataclass(frozen=True)
class ExtendRound:
    """Add scans that arrived after the round was opened. The published part keeps its places."""

    tasks: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """Predict these scans with the active model and store its uncertainties."""

    tasks: tuple[int, ...]


@dataclass(frozen=True)
class Train:
    """Train version `version` on the labels of these tasks, and decide whether it becomes active."""

    version: str
    tasks: tuple[int, ...]


@dataclass(frozen=True)
class DrawQuickly:
    """Learn the quick model from the labels of the tasks `lessons`, and redraw `tasks`, which nobody holds.

    key    of what it learns; "": it is off, and what `tasks` show is taken back
    queue  the open tasks that Label Studio has, in order, to the last of `tasks`
    held   number of its first tasks that annotators may have open
    """

    tasks: tuple[int, ...]
    lessons: tuple[int, ...]
    key: str
    queue: tuple[int, ...]
    held: int


@dataclass(frozen=True)
class Publish:
    """Write the differences to Label Studio: first `tasks` of the latest round, then the project's settings.

    doubled  some tasks have several predictions of the round, so the surplus must be removed
    """

    tasks: tuple[int, ...] = ()
    settings: bool = False
    doubled: bool = False


@dataclass(frozen=True)
class CompareWithControl:
    """Train one model on labels of our order and one on as many controls, and evaluate both on the same scans.

    version     the model that the labels belong to; only its details change
    ours        labelled tasks of our order, evenly from the first labelled to the last
    control     the same number of tasks drawn at random, likewise
    validation  tasks held out from both training runs
    of          number of labelled tasks that each arm was taken from
    """

    version: str
    ours: tuple[int, ...]
    control: tuple[int, ...]
    validation: tuple[int, ...]
    of: tuple[int, int]


Step = (
    Listen
    | ListTasks
    | ReadScans
    | ReadMasks
    | FitMap
    | MapScans
    | OpenRound
    | ExtendRound
    | Score
    | Train
    | DrawQuickly
    | Publish
    | CompareWithControl
)


@dataclass(frozen=True)
class Plan:
    """The `phase` and its `reason` for people, and the missing `steps`, most urgent first.

    given_up  why a training is left out because it was cut off too often, and what to do; "" normally
    remarks   likewise, other work
    """

    phase: str
    reason: str = ""
    steps: tuple[Step, ...] = ()
    given_up: str = ""
    remarks: tuple[str, ...] = ()


def unchanged(seen: Seen, step: Step) -> Live | None:
    """What Label Studio has after this step, if it is what was seen before: it was fast and wrote nothing there."""
    return seen.live if isinstance(step, ReadMasks) and len(step.tasks) <= FEW else None


def describe(step: Step) -> str:
    """One step for the log."""
    tasks = getattr(step, "tasks", None)
    name = type(step).__name__
    return f"{name} ({len(tasks)} tasks)" if tasks else name
