/** Elements without markup strings: texts of users become text nodes, never HTML. */

/** What is set as a property, since the attribute of that name is only its first value. */
const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "textContent", "selected", "readOnly", "open"]);

/**
 * Make an element.
 * @param {string} tag
 * @param {Record<string, any>} [props] Attributes; `on` holds listeners by event; `null` and `false` leave one out.
 * @param {...(Node|string|number|null|undefined|false|Array<any>)} children
 * @returns {any}
 */
export function h(tag, props = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(props)) setProp(node, name, value);
    node.append(...flatten(children));
    return node;
}

/** Replace everything inside `node`. */
export function fill(node, ...children) {
    node.replaceChildren(...flatten(children));
    return node;
}

/** Find an element that the document must have. */
export function byId(id) {
    const node = document.getElementById(id);
    if (!node) throw new Error(`The page has no element with the id ${id}.`);
    return node;
}

let counter = 0;

/** Return an id that no other element has. */
export function uniqueId(prefix = "f") {
    counter += 1;
    return `${prefix}-${counter}`;
}

/** Return a function that runs `action` once the calls have paused for `milliseconds`. */
export function debounced(action, milliseconds) {
    let timer = 0;
    return (...values) => {
        clearTimeout(timer);
        timer = setTimeout(() => action(...values), milliseconds);
    };
}

function setProp(node, name, value) {
    if (name === "on") {
        for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (PROPERTIES.has(name)) {
        node[name] = value;
    } else if (value === true) {
        node.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
        node.setAttribute(name, String(value));
    }
}

function flatten(children) {
    return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}
