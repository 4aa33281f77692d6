// Shared by all views: sends changes and keeps the view up to date. The other scripts use `scanqueue`.
// Data is inserted only with textContent; all HTML comes from the server. texts.js contains the texts.
"use strict";

const scanqueue = (() => {
  const api = document.body.dataset.api;
  const area = document.getElementById("message");
  const INTERVAL = 2000; // milliseconds between two checks of the status
  const RELOAD = 5; // checks after which the view is loaded again even if the status is unchanged

  /** The text under a key, with its {fields} filled in. */
  const t = (key, values = {}) => TEXTS[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);

  // ---- messages

  let hush = 0;

  function say(text, { bad = false, undo = null } = {}) {
    area.replaceChildren();
    area.classList.toggle("bad", bad);
    if (!text) return;
    const words = document.createElement("span");
    words.textContent = text;
    area.append(words);
    if (undo !== null) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = t("undo");
      button.addEventListener("click", undo);
      area.append(button);
    }
    clearTimeout(hush);
    hush = setTimeout(() => area.replaceChildren(), bad || undo ? 20000 : 8000);
  }

  // ---- requests

  /** The answer as an object; throws an Error with a sentence for the user. */
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
      throw new Error(t("no_answer"));
    }
    let found = {};
    try {
      found = await answer.json();
    } catch {
      /* such as the error page of a proxy */
    }
    if (!answer.ok) throw new Error(found.error || t("status", { status: answer.status }));
    return found;
  }

  // ---- buttons that send a change

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
          say(t("undone"));
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

  /** Reload the view, then show this message. */
  function again(text) {
    sessionStorage.setItem("scanqueue-message", text);
    location.reload();
  }

  function wake(within) {
    for (const button of within.querySelectorAll("button[data-send]")) button.disabled = false;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-send]");
    if (button) send(button);
  });

  // ---- times in the reader's time zone

  const clock = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

  function local(within) {
    for (const time of within.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime);
      if (!Number.isNaN(at.getTime())) time.textContent = clock.format(at);
    }
  }

  // ---- missing pictures

  function missing(picture) {
    const frame = picture.closest(".picture");
    if (!frame) return;
    frame.classList.add("missing");
    picture.remove();
    const words = document.createElement("small");
    words.textContent = t("no_picture");
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

  /** Replace the parts that changed; the focus stays where it is. */
  function put(fresh) {
    for (const old of document.querySelectorAll("[data-live]")) {
      const next = fresh.querySelector(`[data-live="${old.dataset.live}"]`);
      if (!next) continue;
      wake(next);
      local(next);
      for (const picture of old.querySelectorAll(".picture.missing")) { // avoids flicker
        const same = next.querySelectorAll(".picture")[[...old.querySelectorAll(".picture")].indexOf(picture)];
        if (same && same.closest("tr, li")?.textContent === picture.closest("tr, li")?.textContent.replace(t("no_picture"), "")) {
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
    if (!answer.ok) throw new Error(t("status", { status: answer.status }));
    return new DOMParser().parseFromString(await answer.text(), "text/html");
  }

  async function look(now = false) {
    clearTimeout(timer);
    if (!live) return;
    if (!document.hidden) {
      try {
        const status = JSON.stringify(await ask(api));
        if (now || (last !== null && status !== last) || looks % RELOAD === RELOAD - 1) put(await read(location.href));
        last = status;
        looks += 1;
        document.body.classList.remove("away");
      } catch {
        document.body.classList.add("away");
      }
    }
    clearTimeout(timer);
    timer = setTimeout(look, INTERVAL);
  }

  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(true); });

  // ---- parts loaded from a separate page, which waits for Label Studio

  async function fill(part) {
    try {
      const page = await read(part.dataset.fill);
      const found = page.querySelector("[data-filling]");
      if (!found) return;
      wake(found);
      local(found);
      if (part.innerHTML !== found.innerHTML && !part.contains(document.activeElement)) part.replaceChildren(...found.childNodes);
    } catch {
      /* the link shown there leads to the same page */
    }
    setTimeout(() => (document.hidden ? document.addEventListener("visibilitychange", () => fill(part), { once: true }) : fill(part)), 15000);
  }

  // ---- the doctor

  async function checkup(button) {
    const list = document.getElementById("checks");
    const words = document.getElementById("checkup-message");
    button.disabled = true;
    words.textContent = t("checking");
    try {
      const { checks } = await ask(document.body.dataset.doctor);
            list.replaceChildren(...checks.map((check) => {
        const item = document.createElement("li");
        item.className = `check ${check.level}`;
        const level = document.createElement("strong");
        level.textContent = t(`check_${check.level}`);
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
      words.textContent = t(bad ? "checks_bad" : "checks_good", { bad, count: checks.length });
    } catch (error) {
      words.textContent = error.message;
    }
    button.disabled = false;
  }

  // ---- start

  wake(document);
  local(document);
  for (const picture of document.querySelectorAll(".picture img")) if (picture.complete && picture.naturalWidth === 0) missing(picture);
  for (const part of document.querySelectorAll("[data-fill]")) fill(part);
  const button = document.getElementById("checkup");
  if (button) {
    button.disabled = false;
    button.addEventListener("click", () => checkup(button));
  }
  const kept = sessionStorage.getItem("scanqueue-message");
  if (kept) {
    sessionStorage.removeItem("scanqueue-message");
    say(kept);
  }
  if (live) look();

  return { api, ask, say, again, t };
})();
