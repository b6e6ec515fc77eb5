/** Light, dark, or as the system has it. */

import { fill, h } from "../core/dom.js";
import { icon } from "../core/icons.js";

const KEY = "flux-ext.theme";
const THEMES = [
    { name: "system", title: "As the system" },
    { name: "light", title: "Light" },
    { name: "dark", title: "Dark" },
];

/** @param {HTMLElement} target */
export function createThemeSwitch(target) {
    const current = localStorage.getItem(KEY) ?? "system";
    const choose = (name) => {
        localStorage.setItem(KEY, name);
        document.documentElement.dataset.theme = name;
    };
    fill(
        target,
        THEMES.map(({ name, title }) =>
            h(
                "label",
                { class: "segment", title },
                h("input", {
                    type: "radio",
                    name: "theme",
                    value: name,
                    checked: name === current,
                    "aria-label": title,
                    on: { change: () => choose(name) },
                }),
                icon(name),
            ),
        ),
    );
}
