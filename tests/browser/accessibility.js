// Returns what people who do not see the page, or see it badly, could not use.
() => {
    const problems = [];
    const seen = (node) => node.checkVisibility({ visibilityProperty: true }) && node.getClientRects().length > 0;
    const name = (node) => `${node.tagName.toLowerCase()}#${node.id || "-"}.${node.className || "-"}`;
    const text = (node) => (node?.textContent ?? "").trim();
    const labelled = (node) =>
        node.getAttribute("aria-label")?.trim() ||
        (node.getAttribute("aria-labelledby") ?? "").split(" ").some((id) => text(document.getElementById(id))) ||
        [...(node.labels ?? [])].some((label) => text(label) || label.querySelector("[aria-label]")) ||
        (["BUTTON", "A", "SUMMARY"].includes(node.tagName) && text(node));

    for (const node of document.querySelectorAll("input, select, textarea, button, a[href], summary, canvas")) {
        if (seen(node) && !labelled(node)) problems.push(`${name(node)} has no name`);
    }
    for (const image of document.querySelectorAll("img")) {
        if (!image.hasAttribute("alt")) problems.push(`${name(image)} has no text`);
    }
    const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
    for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) problems.push(`two elements are called ${id}`);
    for (const attribute of ["aria-describedby", "aria-labelledby", "aria-controls", "for"]) {
        for (const node of document.querySelectorAll(`[${attribute}]`)) {
            for (const id of node.getAttribute(attribute).split(" ")) {
                if (!document.getElementById(id)) problems.push(`${attribute} of ${name(node)} names ${id}, which is not there`);
            }
        }
    }
    if (document.querySelectorAll("h1").length !== 1) problems.push("there is not one main heading");
    for (const role of ["main", "header"]) if (!document.querySelector(role)) problems.push(`there is no ${role}`);

    const parse = (color) => {
        const [red, green, blue, alpha = 1] = color.match(/[\d.]+/g).map(Number);
        return { channels: [red, green, blue], alpha };
    };
    const light = (channels) => {
        const [red, green, blue] = channels.map((each) => {
            const share = each / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const background = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const { channels, alpha } = parse(getComputedStyle(at).backgroundColor);
            if (alpha > 0.95) return channels;
            if (alpha > 0) return null;
        }
        return parse(getComputedStyle(document.body).backgroundColor).channels;
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !seen(node) || node.closest(":disabled, .sr-only, option, noscript")) continue;
        const behind = background(node);
        if (!behind) continue;
        const [one, other] = [light(parse(getComputedStyle(node).color).channels), light(behind)];
        const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        if (contrast < 4.5) problems.push(`${name(node)} has a contrast of ${contrast.toFixed(2)}: ${text(node).slice(0, 30)}`);
    }
    return problems;
}
