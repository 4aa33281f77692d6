"""The schema of the records. Migrations bring older databases to it."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, LargeBinary, MetaData, String, Table, Text, text

metadata = MetaData()
project_table = Table(
    "project",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("title", Text, nullable=False, default=""),
    Column("extra_params", Text, nullable=False, default=""),  # as sent by Label Studio
    Column("backend_url", Text, nullable=False, default=""),
    Column("secret", Text, nullable=False, default=""),
    Column("connected", Integer, nullable=False, default=0),  # 0 until Label Studio lists us; see `loop.connection`
    Column("cursor", Text, nullable=False, default=""),
    Column("config", Text, nullable=False, default=""),  # the label config that the records match
    Column("phase", String(16), nullable=False, default="empty"),
    Column("reason", Text, nullable=False, default=""),
    Column("trouble", Text, nullable=False, default=""),  # message from the last run of the loop, or ""
    Column("training_requests", Integer, nullable=False, default=0),
    Column("active", String(40), nullable=False, default=""),
    Column("embedder", Text, nullable=False, default=""),
    Column("embedder_why", Text, nullable=False, default=""),
    Column("sending", Float, nullable=False, default=0.0),  # start time of an unconfirmed import
    Column("seen_at", Float, nullable=False, default=0.0),
    Column("stratify_by", Text, nullable=False, default=""),  # the task data key of the strata
    Column("overrides", Text, nullable=False, default=""),  # JSON of the settings changed on the page
    Column("studio_url", Text, nullable=False, default=""),  # public address of Label Studio, as it reports it
    Column("task_data_version", Integer, nullable=False, default=0),  # `TASK_DATA_VERSION` of the last full listing
    Column("label_renames", Text, nullable=False, default=""),  # JSON of `label_config.Renames`
    Column("settings_before", Text, nullable=False, default=""),  # JSON: Label Studio's, before we changed them
    Column("overlap", Integer, nullable=False, default=1),  # annotations that Label Studio wants of each task
    Column("first_round", Integer, nullable=False, default=0),  # lowest number that a new round may have
    Column("stages", Text, nullable=False, default=""),  # JSON: what the stages of the scans refer to; see `stages`
)
scan_table = Table(
    "scan",
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("task", BigInteger, primary_key=True),
    Column("image", Text, nullable=False, default=""),
    Column("updated_at", String(40), nullable=False, default=""),
    Column("annotated", Integer, nullable=False, default=0),
    Column("skipped", Integer, nullable=False, default=0),
    Column("digest", String(64), nullable=False, default=""),
    Column("height", Integer, nullable=False, default=0),
    Column("width", Integer, nullable=False, default=0),
    Column("problem", Text, nullable=False, default=""),
    Column("problem_at", Float, nullable=False, default=0.0),
    Column("stratum", Text, nullable=False, default=""),  # the value of the stratify_by key in the task data
    Column("priority", Integer, nullable=False, default=0),  # PRIORITY_NEXT, PRIORITY_EXCLUDED, or 0
    Column("volume", Text, nullable=False, default=""),  # this and the next columns: see `task_data.TaskData`
    Column("slice", Integer, nullable=False, default=0),
    Column("patient", Text, nullable=False, default=""),
    Column("row_mm", Float, nullable=False, default=0.0),
    Column("column_mm", Float, nullable=False, default=0.0),
    Column("blank", Integer, nullable=False, default=0),  # 1: all pixels are equal
    Column("stage", Integer, nullable=False, default=0),  # a `facts.Stage`
    Column("draw", BigInteger, nullable=False, default=0),  # place in a random order; see `stages.random_place`
)
Index("scan_stage", *(scan_table.c[name] for name in ("project", "stage", "annotated", "draw")))
Index("scan_counted", *(scan_table.c[name] for name in ("project", "annotated", "skipped")))
Index("scan_volume", scan_table.c.project, scan_table.c.volume)
for _name in ("problem", "priority"):  # few scans have one
    _few = text(f"{_name} != ''" if _name == "problem" else f"{_name} != 0")
    Index(f"scan_{_name}", scan_table.c.project, sqlite_where=_few, postgresql_where=_few)
label_table = Table(
    "label",
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("task", BigInteger, primary_key=True),
    Column("annotation", BigInteger, nullable=False),
    Column("key", String(64), nullable=False),
    Column("mask", String(64), nullable=False, default=""),
    Column("read_at", String(40), nullable=False),  # updated_at of the task at that time
    Column("config", String(64), nullable=False),
    Column("shown_version", String(40), nullable=False, default=""),
    Column("lead_time", Float),
    Column("completed_by", BigInteger),
    Column("problem", Text, nullable=False, default=""),
    Column("remark", Text, nullable=False, default=""),
    Column("empty", Integer, nullable=False, default=-1),  # 1: the mask has no foreground; -1: read by an older version
    Column("unknown", Text, nullable=False, default=""),  # JSON: its labels that the label config does not have
    Column("known", Text, nullable=False, default=""),  # JSON: labels that its annotator could draw; "": not recorded
)
embedding_table = Table(
    "embedding",
    metadata,
    Column("embedder", String(200), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("vector", LargeBinary, nullable=False),
)
model_table = Table(
    "model",
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("version", String(40), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("labels", Text, nullable=False),
    Column("trained_on", Text, nullable=False),  # numbers of lessons, see `models.numbers_text`; JSON in older rows
    Column("accepted", Integer, nullable=False),
    Column("remark", Text, nullable=False, default=""),
    Column("validation", Text, nullable=False),
    Column("details", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("held_out", LargeBinary),  # compressed JSON; NULL in older rows, which have it in `details`
)
lesson_table = Table(
    "lesson",  # labelled scans as models were given them, see `facts.Lesson`; recorded once for all models
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("task", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("mask", String(64), nullable=False),
    Column("belongs_to", Text, nullable=False),  # patient or volume
    Column("unknown", Text, nullable=False, default=""),  # JSON list of class numbers; "" for none
)
round_table = Table(
    "round",
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("key", String(64), nullable=False),
    Column("model", String(40), nullable=False),
    Column("picks", Text, nullable=False),
    Column("carried", Text, nullable=False),
    Column("size", Integer, nullable=False),
    Column("labels", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("published_at", Float),
    Column("settings", Text, nullable=False, default=""),  # JSON of the settings of the ranking; "" in older rows
    Column("changes", Integer, nullable=False, default=0),  # how often the order was extended or shortened
    Column("reach", Integer, nullable=False, default=0),  # number of places that have been published at least
)
uncertainty_table = Table(
    "uncertainty",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("value", Float, nullable=False),  # mean entropy of the image
    Column("more", Text, nullable=False, default=""),  # JSON of the other measures; "" in older rows
)
shown_table = Table(
    "shown",
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("task", BigInteger, primary_key=True),
    Column("version", String(40), nullable=False),
    Column("label", String(64), nullable=False),
    Column("dice", Float, nullable=False),
    Column("hd", Float, nullable=False),
    Column("hd95", Float, nullable=False),
    Column("unit", String(8), nullable=False),
    Column("shown_empty", Integer, nullable=False, default=-1),  # 1: the shown mask has no foreground; -1: unknown
    Column("label_empty", Integer, nullable=False, default=-1),  # the same for the submitted mask
    Column("per_label", Text, nullable=False, default=""),  # JSON of `averages.as_row`; "" in older rows
)
quick_mask_table = Table(
    "quick_mask",  # the mask of the quick model that each of the next tasks shows; task 0: the newest quick model
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("task", BigInteger, primary_key=True),
    Column("version", String(40), nullable=False),
    Column("key", String(64), nullable=False),  # of the last labels that the task was to be redrawn for
    Column("drawn", String(64), nullable=False),  # the key of the mask that it shows; "": none
    Column("names", Text, nullable=False),  # JSON: the labels of its classes
    Column("learnt", Integer, nullable=False),  # number of labelled scans
    Column("dice", Float),  # expected; None: unknown
)
correction_table = Table(
    "correction",  # what smart tools answered on the scan of a task, and how good that was
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("task", BigInteger, primary_key=True),
    Column("at", Float, nullable=False),  # time of the newest answer
    Column("answers", Integer, nullable=False, default=0),
    Column("failed", Integer, nullable=False, default=0),
    Column("slow", Integer, nullable=False, default=0),
    Column("names", Text, nullable=False, default="[]"),  # JSON: the labels that were corrected, classes 1.. of `mask`
    Column("mask", LargeBinary),  # PNG: the newest answer for each label; NULL once it is compared
    Column("before", Float),  # Dice between the mask that the task opened with and the submitted mask; NULL: blank
    Column("after", Float),  # Dice between the newest answer and the submitted mask; NULL: not submitted yet
)
progress_table = Table(
    "progress",
    metadata,
    Column("project", BigInteger, primary_key=True, autoincrement=False),
    Column("step", Text, nullable=False),
    Column("done", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("at", Float, nullable=False),
)
change_table = Table(
    "change",
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("user", Text, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("what", Text, nullable=False),
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    Column("undone", Integer, nullable=False, default=0),
)
worker_table = Table(
    "worker",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("at", Float, nullable=False),
    Column("doing", Text, nullable=False),
)
counter_table = Table(
    "counter",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("label", String(100), primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("total", Float, nullable=False),
)
