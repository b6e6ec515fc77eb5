/** Errors as text at the field they concern. */

import { h, uniqueId } from "../core/dom.js";

/** @typedef {ReturnType<typeof createErrors>} Errors */

export function createErrors() {
    /** @type {Map<string, {control: HTMLElement, slot: HTMLElement}>} */
    const fields = new Map();
    /** @type {Map<string, string>} */
    const messages = new Map();

    const write = (place) => {
        const field = fields.get(place);
        const message = messages.get(place) ?? "";
        if (!field) return;
        field.slot.textContent = message;
        field.slot.hidden = !message;
        if (message) field.control.setAttribute("aria-invalid", "true");
        else field.control.removeAttribute("aria-invalid");
    };
    const show = (place, message) => {
        if (message) messages.set(place, message);
        else messages.delete(place);
        write(place);
    };

    return {
        /**
         * Give a control the slot in which its error is shown, and forget the error as soon as it is changed.
         * @param {string} place
         * @param {HTMLElement} control
         * @param {(slot: HTMLElement) => HTMLElement} build puts both into one element
         */
        attach(place, control, build) {
            const slot = h("p", { class: "error", id: uniqueId("error"), hidden: true });
            const described = control.getAttribute("aria-describedby");
            control.setAttribute("aria-describedby", described ? `${described} ${slot.id}` : slot.id);
            fields.set(place, { control, slot });
            const element = build(slot);
            element.addEventListener("input", () => messages.has(place) && show(place, ""));
            write(place);
            return element;
        },
        show,
        /** Whether any field that is on the page has an error. */
        any: () => [...fields].some(([place, { slot }]) => messages.has(place) && slot.isConnected),
        /**
         * Show the problems of an answer in place of those before.
         * @param {{place: string, message: string}[]} problems
         * @returns {{message: string, place: string, control: HTMLElement|null}[]} where each of them is
         */
        showAll(problems) {
            const before = [...messages.keys()];
            messages.clear();
            before.forEach(write);
            return problems.map(({ place, message }) => {
                const nearest = nearestPlace(fields, place);
                if (nearest) show(nearest, messages.has(nearest) ? `${messages.get(nearest)} ${message}` : message);
                return { message, place, control: nearest ? fields.get(nearest).control : null };
            });
        },
    };
}

/** Find the field that holds a place: itself, or the nearest around it that is on the page. */
function nearestPlace(fields, place) {
    const parts = place.split(".");
    for (let length = parts.length; length > 0; length -= 1) {
        const name = parts.slice(0, length).join(".");
        if (fields.get(name)?.slot.isConnected) return name;
    }
    return null;
}
