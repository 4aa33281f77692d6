// The settings form: previews a change before it is saved.
"use strict";

(() => {
  const { api, ask, again, t } = scanqueue;
  const form = document.getElementById("settings-form");
  const wrong = document.getElementById("settings-message");
  const saving = document.getElementById("save");
  const discarding = document.getElementById("discard");
  const controls = [...form.querySelectorAll(".setting")];
  const table = document.getElementById("preview-table");
  const message = document.getElementById("preview-message");
  const FIRST = 12; // number of places in the preview
  const usual = message.textContent;
  let pending = 0;
  let asked = 0;

  const control = (setting) => form.querySelector(`#${CSS.escape(setting.dataset.name)}`);

  /** The value of a control in the form sent; an invalid number remains text, and the server explains the error. */
  function given(setting) {
    const text = control(setting).value.trim();
    if (["choice", "text"].includes(setting.dataset.kind)) return text;
    return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
  }

  function changed(setting) {
    const now = control(setting).dataset.now;
    return ["choice", "text"].includes(setting.dataset.kind) ? given(setting) !== now : given(setting) !== Number(now);
  }

  function changes(only = () => true) {
    return Object.fromEntries(controls.filter((l) => only(l) && changed(l)).map((l) => [l.dataset.name, given(l)]));
  }

  function refresh() {
    for (const setting of controls) setting.classList.toggle("changed", changed(setting));
    const any = controls.some(changed);
    saving.disabled = !any;
    discarding.disabled = !any;
  }

  function cell(text, className = "", name = "td") {
    const made = document.createElement(name);
    made.textContent = text;
    made.className = className;
    return made;
  }

  function way(place, before) {
    if (before === undefined) return [t("new"), "new"];
    if (before === place) return [t("same"), "same"];
    return before > place ? [t("up", { place: before }), "up"] : [t("down", { place: before }), "down"];
  }

  function show({ now, then, note }) {
    const before = new Map(now.map((pick, at) => [pick.task, at + 1]));
    const first = then.slice(0, FIRST);
    const body = table.tBodies[0];
    body.replaceChildren(...first.map((pick, at) => {
      const row = document.createElement("tr");
      const scan = document.createElement("th");
      scan.scope = "row";
      const frame = document.createElement("span");
      frame.className = "picture";
      frame.style.setProperty("--side", "40px");
      const image = document.createElement("img");
      image.src = `scans/${pick.task}.png?quiet=1&side=96`;
      image.alt = "";
      image.width = image.height = 40;
      frame.append(image);
      const words = document.createElement("span");
      words.className = "scan";
      words.append(frame, t("task", { task: pick.task }));
      scan.append(words);
      const [text, kind] = way(at + 1, before.get(pick.task));
      row.append(cell(String(at + 1), "figure"), scan, cell(text, `move ${kind}`));
      return row;
    }));
    table.hidden = first.length === 0;
    const moved = first.filter((pick, at) => before.get(pick.task) !== at + 1).length;
    const fresh = first.filter((pick) => !before.has(pick.task)).length;
    message.textContent = [
      t(first.length === 0 ? "nothing" : moved === 0 ? "unchanged" : fresh ? "changed_new" : "changed", {
        count: first.length, moved, new: fresh,
      }),
      note,
    ].filter(Boolean).join(" ");
  }

  async function preview() {
    const wanted = changes((setting) => "preview" in setting.dataset);
    asked += 1;
    const mine = asked;
    if (Object.keys(wanted).length === 0) {
      table.hidden = true;
      message.textContent = usual;
      return;
    }
    try {
      const found = await ask(`${api}/preview?${new URLSearchParams(wanted)}`);
      if (mine === asked) show(found);
    } catch (error) {
      if (mine !== asked) return;
      table.hidden = true;
      message.textContent = error.message;
    }
  }

  form.addEventListener("input", (event) => {
    const setting = event.target.closest(".setting");
    const slider = setting.querySelector("[type=range]");
    if (slider && event.target === slider) control(setting).value = slider.value;
    else if (slider) slider.value = event.target.value;
    wrong.textContent = "";
    refresh();
    if ("preview" in setting.dataset) {
      clearTimeout(pending);
      pending = setTimeout(preview, 250);
    }
  });

  form.addEventListener("reset", () => setTimeout(() => {
    wrong.textContent = "";
    refresh();
    preview();
  }));

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const wanted = changes();
    if (Object.keys(wanted).length === 0) return;
    saving.disabled = true;
    wrong.textContent = "";
    try {
      await ask(`${api}/settings`, wanted);
      again(t("saved"));
    } catch (error) {
      wrong.textContent = error.message;
      saving.disabled = false;
    }
  });

  for (const part of form.querySelectorAll("input, select")) part.disabled = false;
  form.reset(); // a browser may have restored earlier input
  refresh();
})();
