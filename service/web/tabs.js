/** Tabs after the ARIA pattern: arrow keys move among them, one tab stop, panels are hidden and shown. */

/** `onChange(id)` is called with the panel's id, also at the start. Returns a function that selects a panel. */
export function makeTabs(list, onChange) {
  const tabs = [...list.querySelectorAll("[role=tab]")];
  const panelOf = (tab) => document.getElementById(tab.getAttribute("aria-controls"));

  function select(tab) {
    for (const other of tabs) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", chosen);
      other.tabIndex = chosen ? 0 : -1;
      panelOf(other).hidden = !chosen;
    }
    onChange(panelOf(tab).id);
  }

  const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
  list.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (move === undefined || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return; // the browser's
    event.preventDefault();
    const at = tabs.indexOf(document.activeElement);
    const next = Number.isFinite(move) ? (at + move + tabs.length) % tabs.length : move < 0 ? 0 : tabs.length - 1;
    tabs[next].focus();
    select(tabs[next]);
  });
  for (const tab of tabs) tab.addEventListener("click", () => select(tab));
  select(tabs[0]);
  return (id) => select(tabs.find((tab) => panelOf(tab).id === id));
}
