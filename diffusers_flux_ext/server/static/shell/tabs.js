/** Views of which one is shown, chosen by tabs. */

import { byId } from "../core/dom.js";

/**
 * @param {string[]} names Each has a tab `tab-<name>` and a view `view-<name>`.
 * @returns {{show: (name: string) => void, reveal: (name: string) => void}}
 */
export function createTabs(names) {
    const tabs = names.map((name) => byId(`tab-${name}`));
    const views = names.map((name) => byId(`view-${name}`));
    const show = (name) => {
        names.forEach((each, index) => {
            const chosen = each === name;
            tabs[index].setAttribute("aria-selected", String(chosen));
            tabs[index].tabIndex = chosen ? 0 : -1;
            views[index].hidden = !chosen;
        });
    };
    tabs.forEach((tab, index) => {
        tab.addEventListener("click", () => show(names[index]));
        tab.addEventListener("keydown", (event) => {
            const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
            if (!step) return;
            const next = (index + step + names.length) % names.length;
            show(names[next]);
            tabs[next].focus();
        });
    });
    show(names[0]);
    return {
        show,
        /** Show a view, and bring it into sight. */
        reveal(name) {
            show(name);
            tabs[0].closest("section").scrollIntoView({ block: "nearest" });
        },
    };
}
