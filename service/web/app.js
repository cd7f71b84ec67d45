/** The page put together: connection, tabs, language, colours, errors, token. */

import { Announcer } from "./announcer.js";
import { Link } from "./connection.js";
import { History } from "./history.js";
import { currentLanguage, errorText, languages, setLanguage, t, translatePage } from "./i18n.js";
import { Live } from "./live.js";
import { Photos } from "./photos.js";
import { remember, remembered } from "./storage.js";
import { makeTabs } from "./tabs.js";
import { followTheme } from "./theme.js";
import { Session } from "./timeline.js";

const $ = (id) => document.getElementById(id);

let problem = null;

function showProblem(error) {
  problem = error;
  $("notice").hidden = error === null;
  const text = error === null ? "" : errorText(error);
  // Written once: screen readers say it each time, and a camera's frames may fail many times a second.
  if ($("notice-text").textContent !== text) $("notice-text").textContent = text;
}

/** Take the error back that is shown, where it is one of those that are over. */
function takeBack(isOver) {
  if (problem !== null && isOver(problem)) showProblem(null);
}

function showState(link) {
  const { state, version } = link;
  $("status").dataset.state = state;
  $("status-text").textContent = state === "ready" ? `${t("ready")} · ${version}` : t(state);
  const wasHidden = $("token").hidden;
  // The form goes: the keyboard stays at the page's content.
  if (state !== "refused" && $("token").contains(document.activeElement)) $("main").focus();
  $("token").hidden = state !== "refused";
  if (wasHidden && state === "refused") $("token-input").focus();
  if (state === "refused" && link.wrongToken) showProblem({ code: "unauthorized" });
  if (state === "ready") takeBack(({ code }) => code === "unauthorized");
}

followTheme($("theme"));
setLanguage(remembered("language"));
translatePage();
$("language").value = currentLanguage();

const link = new Link();
const session = new Session();
const views = {
  live: new Live(link, session, showProblem, takeBack),
  photos: new Photos(link, session, new Announcer($("announcer")), () => select("photos"), showProblem, takeBack),
  history: new History(link),
};
const select = makeTabs(document.querySelector("[role=tablist]"), (id) => {
  for (const [name, view] of Object.entries(views)) view.show(name === id);
});

$("language").addEventListener("change", ({ target }) => {
  remember("language", target.value);
  setLanguage(target.value);
});
languages.addEventListener("change", () => {
  showState(link);
  showProblem(problem);
});
$("notice-close").addEventListener("click", () => {
  showProblem(null);
  $("main").focus();
});
link.addEventListener("state", () => showState(link));
$("token").addEventListener("submit", (event) => {
  event.preventDefault();
  // Kept by the page only: what is in a browser's storage can be read by whoever sits down after.
  link.start($("token-input").value);
  $("token-input").value = "";
});
link.start();
