// What every view does with scripts: sends what was asked for, and keeps what is shown up to date.
// The other scripts use what `scanqueue` offers. Texts of data are put in place with textContent only; HTML comes from the server alone.
"use strict";

const scanqueue = (() => {
  const api = document.body.dataset.api;
  const said = document.getElementById("said");
  const EVERY = 2000; // milliseconds between two looks
  const WHOLE = 5; // looks after which the view is read again even where the status is the same

  // ---- telling people

  let hush = 0;

  function say(text, { bad = false, undo = null } = {}) {
    said.replaceChildren();
    said.classList.toggle("bad", bad);
    if (!text) return;
    const words = document.createElement("span");
    words.textContent = text;
    said.append(words);
    if (undo !== null) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "Undo";
      button.addEventListener("click", undo);
      said.append(button);
    }
    clearTimeout(hush);
    hush = setTimeout(() => said.replaceChildren(), bad || undo ? 20000 : 8000);
  }

  // ---- asking

  /** The answer as an object; throws an Error with a sentence for people. */
  async function ask(address, body) {
    const options = { headers: { Accept: "application/json" }, cache: "no-store" };
    if (body !== undefined) {
      options.method = "POST";
      options.headers["Content-Type"] = "application/json";
      options.body = JSON.stringify(body);
    }
    let answer;
    try {
      answer = await fetch(address, options);
    } catch {
      throw new Error("scanqueue does not answer. Check that it runs, and try again.");
    }
    let found = {};
    try {
      found = await answer.json();
    } catch {
      /* an error of a proxy, say */
    }
    if (!answer.ok) throw new Error(found.error || `scanqueue answered ${answer.status}.`);
    return found;
  }

  // ---- buttons that send

  async function send(button) {
    const { send: what, body, done, undo, mark, ask: question } = button.dataset;
    if (question && !window.confirm(question)) return;
    button.disabled = true;
    const marked = mark ? document.getElementById(mark) : null;
    try {
      const answer = await ask(`${api}/${what}`, JSON.parse(body));
      if (marked) marked.classList.add("out");
      const back = async () => {
        try {
          await ask(`${api}/undo`, { change: answer.change });
          if (marked) marked.classList.remove("out");
          button.disabled = false;
          say("Undone.");
          look(true);
          button.focus();
        } catch (error) {
          say(error.message, { bad: true });
        }
      };
      if (["settings", "undo"].includes(what) && document.querySelector("form[data-reload]")) return again(done);
      say(done, { undo: undo && answer.change !== undefined ? back : null });
      look(true);
      if (!mark) setTimeout(() => { button.disabled = false; }, 1500);
    } catch (error) {
      button.disabled = false;
      say(error.message, { bad: true });
    }
  }

  /** Load the view again, and say this once it is there. */
  function again(text) {
    sessionStorage.setItem("scanqueue-said", text);
    location.reload();
  }

  function wake(within) {
    for (const button of within.querySelectorAll("button[data-send]")) button.disabled = false;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-send]");
    if (button) send(button);
  });

  // ---- times as the reader's clock has them

  const clock = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

  function local(within) {
    for (const time of within.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime);
      if (!Number.isNaN(at.getTime())) time.textContent = clock.format(at);
    }
  }

  // ---- pictures that are not there

  function missing(picture) {
    const frame = picture.closest(".picture");
    if (!frame) return;
    frame.classList.add("missing");
    picture.remove();
    const words = document.createElement("small");
    words.textContent = "no picture";
    frame.append(words);
  }

  document.addEventListener("error", (event) => {
    if (event.target instanceof HTMLImageElement) missing(event.target);
  }, true);

  // ---- keeping the view up to date

  const live = [...document.querySelectorAll("[data-live]")].filter((e) => e.dataset.live !== "pill").length > 0;
  let last = null;
  let looks = 0;
  let timer = 0;

  /** Put the parts that changed in place of the old ones; who had the focus keeps it. */
  function put(fresh) {
    for (const old of document.querySelectorAll("[data-live]")) {
      const next = fresh.querySelector(`[data-live="${old.dataset.live}"]`);
      if (!next) continue;
      wake(next);
      local(next);
      for (const picture of old.querySelectorAll(".picture.missing")) { // else it would flicker
        const same = next.querySelectorAll(".picture")[[...old.querySelectorAll(".picture")].indexOf(picture)];
        if (same && same.closest("tr, li")?.textContent === picture.closest("tr, li")?.textContent.replace("no picture", "")) {
          same.replaceWith(picture.cloneNode(true));
        }
      }
      if (old.className !== next.className) old.className = next.className;
      if (old.innerHTML === next.innerHTML) continue;
      const key = old.contains(document.activeElement) ? document.activeElement.dataset.key : null;
      old.replaceChildren(...next.childNodes);
      if (key) old.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
    }
  }

  async function read(address) {
    const answer = await fetch(address, { headers: { Accept: "text/html" }, cache: "no-store" });
    if (!answer.ok) throw new Error(`scanqueue answered ${answer.status}.`);
    return new DOMParser().parseFromString(await answer.text(), "text/html");
  }

  async function look(now = false) {
    clearTimeout(timer);
    if (!live) return;
    if (!document.hidden) {
      try {
        const status = JSON.stringify(await ask(api));
        if (now || (last !== null && status !== last) || looks % WHOLE === WHOLE - 1) put(await read(location.href));
        last = status;
        looks += 1;
        document.body.classList.remove("away");
      } catch {
        document.body.classList.add("away");
      }
    }
    clearTimeout(timer);
    timer = setTimeout(look, EVERY);
  }

  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(true); });

  // ---- parts that are read from a page of their own, because Label Studio is asked for them

  async function fill(part) {
    try {
      const page = await read(part.dataset.fill);
      const found = page.querySelector("[data-filling]");
      if (!found) return;
      wake(found);
      local(found);
      if (part.innerHTML !== found.innerHTML && !part.contains(document.activeElement)) part.replaceChildren(...found.childNodes);
    } catch {
      /* the link that stands there leads to the same */
    }
    setTimeout(() => (document.hidden ? document.addEventListener("visibilitychange", () => fill(part), { once: true }) : fill(part)), 15000);
  }

  // ---- the doctor

  async function checkup(button) {
    const list = document.getElementById("checks");
    const words = document.getElementById("checkup-said");
    button.disabled = true;
    words.textContent = "Checking …";
    try {
      const { checks } = await ask(document.body.dataset.doctor);
      const names = { ok: "Fine", warning: "Look at this", error: "Mend" };
      list.replaceChildren(...checks.map((check) => {
        const item = document.createElement("li");
        item.className = `check ${check.level}`;
        const level = document.createElement("strong");
        level.textContent = names[check.level] ?? check.level;
        const what = document.createElement("span");
        what.textContent = check.what;
        item.append(level, " ", what);
        if (check.cure) {
          const cure = document.createElement("span");
          cure.className = "cure";
          cure.textContent = check.cure;
          item.append(" ", cure);
        }
        return item;
      }));
      const bad = checks.filter((check) => check.level !== "ok").length;
      words.textContent = bad ? `${bad} of ${checks.length} checks found something.` : `All ${checks.length} checks are fine.`;
    } catch (error) {
      words.textContent = error.message;
    }
    button.disabled = false;
  }

  // ---- at the start

  wake(document);
  local(document);
  for (const picture of document.querySelectorAll(".picture img")) if (picture.complete && picture.naturalWidth === 0) missing(picture);
  for (const part of document.querySelectorAll("[data-fill]")) fill(part);
  const button = document.getElementById("checkup");
  if (button) {
    button.disabled = false;
    button.addEventListener("click", () => checkup(button));
  }
  const kept = sessionStorage.getItem("scanqueue-said");
  if (kept) {
    sessionStorage.removeItem("scanqueue-said");
    say(kept);
  }
  if (live) look();

  return { api, ask, say, again };
})();
