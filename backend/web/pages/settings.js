// The levers: what would change is shown before it is saved.
"use strict";

(() => {
  const { api, ask, again } = scanqueue;
  const form = document.getElementById("levers");
  const wrong = document.getElementById("levers-said");
  const saving = document.getElementById("save");
  const discarding = document.getElementById("discard");
  const levers = [...form.querySelectorAll(".lever")];
  const table = document.getElementById("preview-table");
  const telling = document.getElementById("preview-said");
  const FIRST = 12; // places that the preview shows
  const usual = telling.textContent;
  let pending = 0;
  let asked = 0;

  const control = (lever) => form.querySelector(`#${CSS.escape(lever.dataset.name)}`);

  /** What a lever says, as it is sent; a number that is none stays text, and scanqueue says what is wrong with it. */
  function told(lever) {
    const text = control(lever).value.trim();
    if (["choice", "text"].includes(lever.dataset.kind)) return text;
    return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
  }

  function changed(lever) {
    const now = control(lever).dataset.now;
    return ["choice", "text"].includes(lever.dataset.kind) ? told(lever) !== now : told(lever) !== Number(now);
  }

  function changes(only = () => true) {
    return Object.fromEntries(levers.filter((l) => only(l) && changed(l)).map((l) => [l.dataset.name, told(l)]));
  }

  function refresh() {
    for (const lever of levers) lever.classList.toggle("changed", changed(lever));
    const any = levers.some(changed);
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
    if (before === undefined) return ["new", "new"];
    if (before === place) return ["same place", "same"];
    return before > place ? [`▲ up from ${before}`, "up"] : [`▼ down from ${before}`, "down"];
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
      words.append(frame, `Task ${pick.task}`);
      scan.append(words);
      const [text, kind] = way(at + 1, before.get(pick.task));
      row.append(cell(String(at + 1), "figure"), scan, cell(text, `move ${kind}`));
      return row;
    }));
    table.hidden = first.length === 0;
    const moved = first.filter((pick, at) => before.get(pick.task) !== at + 1).length;
    const fresh = first.filter((pick) => !before.has(pick.task)).length;
    telling.textContent = [
      first.length === 0 ? "There is nothing to choose from." :
      moved === 0 ? `The first ${first.length} places would stay as they are.` :
        `${moved} of the first ${first.length} places would change${fresh ? `, ${fresh} with scans that are not in the queue now` : ""}.`,
      note,
    ].filter(Boolean).join(" ");
  }

  async function preview() {
    const wanted = changes((lever) => "preview" in lever.dataset);
    asked += 1;
    const mine = asked;
    if (Object.keys(wanted).length === 0) {
      table.hidden = true;
      telling.textContent = usual;
      return;
    }
    try {
      const found = await ask(`${api}/preview?${new URLSearchParams(wanted)}`);
      if (mine === asked) show(found);
    } catch (error) {
      if (mine !== asked) return;
      table.hidden = true;
      telling.textContent = error.message;
    }
  }

  form.addEventListener("input", (event) => {
    const lever = event.target.closest(".lever");
    const slider = lever.querySelector("[type=range]");
    if (slider && event.target === slider) control(lever).value = slider.value;
    else if (slider) slider.value = event.target.value;
    wrong.textContent = "";
    refresh();
    if ("preview" in lever.dataset) {
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
      again("Saved. The queue follows as soon as a worker is free.");
    } catch (error) {
      wrong.textContent = error.message;
      saving.disabled = false;
    }
  });

  for (const part of form.querySelectorAll("input, select")) part.disabled = false;
  form.reset(); // a browser may have kept what was typed before
  refresh();
})();
