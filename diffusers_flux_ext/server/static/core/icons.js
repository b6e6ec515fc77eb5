/** Line icons of 24 x 24 units, drawn with the colour of the text. */

const SVG = "http://www.w3.org/2000/svg";

const PATHS = {
    add: ["M12 5v14", "M5 12h14"],
    again: ["M4 12a8 8 0 1 0 2.6-5.9", "M4 4v4.5h4.5"],
    box: ["M5 5h14v14H5z"],
    brush: ["M14.5 5.5l4 4L10 18H6v-4z", "M12.5 7.5l4 4"],
    close: ["M6 6l12 12", "M18 6L6 18"],
    compare: ["M12 3v18", "M4 6h5v12H4z", "M15 6h5v12h-5z"],
    copy: ["M9 9h11v11H9z", "M15 9V4H4v11h5"],
    dark: ["M19.5 14.5A8 8 0 0 1 9.5 4.5a8 8 0 1 0 10 10z"],
    delete: ["M5 7h14", "M10 7V4h4v3", "M7 7l1 13h8l1-13"],
    down: ["M12 5v14", "M6 13l6 6 6-6"],
    eraser: ["M8 19l-4-4L14 5l6 6-8 8z", "M9.5 9.5l6 6", "M8 19h12"],
    image: ["M4 5h16v14H4z", "M4 16l5-5 4 4 3-3 4 4", "M15.5 9.5h.01"],
    lasso: ["M5 16l2-9 8-3 5 6-4 8-7 1z"],
    light: [
        "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8z",
        "M12 2.5v2",
        "M12 19.5v2",
        "M2.5 12h2",
        "M19.5 12h2",
        "M5.3 5.3l1.4 1.4",
        "M17.3 17.3l1.4 1.4",
        "M18.7 5.3l-1.4 1.4",
        "M6.7 17.3l-1.4 1.4",
    ],
    load: ["M4 16v4h16v-4", "M12 16V4", "M7 9l5-5 5 5"],
    redo: ["M20 9H9a5 5 0 0 0 0 10h4", "M16 5l4 4-4 4"],
    save: ["M4 16v4h16v-4", "M12 4v12", "M7 11l5 5 5-5"],
    select: ["M6 4l13 7-6 1.5L10 19z"],
    stop: ["M7 7h10v10H7z"],
    system: ["M4 5h16v11H4z", "M9 20h6", "M12 16v4"],
    undo: ["M4 9h11a5 5 0 0 1 0 10h-4", "M8 5L4 9l4 4"],
    up: ["M12 19V5", "M6 11l6-6 6 6"],
};

/**
 * Draw an icon, which assistive technology skips: the control that holds it has a name.
 * @param {keyof typeof PATHS} name
 * @returns {SVGElement}
 */
export function icon(name) {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 24 24");
    svg.setAttribute("class", "icon");
    svg.setAttribute("aria-hidden", "true");
    for (const d of PATHS[name]) {
        const path = document.createElementNS(SVG, "path");
        path.setAttribute("d", d);
        svg.append(path);
    }
    return svg;
}
