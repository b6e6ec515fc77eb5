/** What can be seen to be missing before the server is asked. */

/**
 * @param {import("../core/draft.js").Draft} draft
 * @param {import("../core/catalog.js").Catalog} catalog
 * @returns {{place: string, message: string}[]}
 */
export function checkDraft(draft, catalog) {
    return [...regionProblems(draft), ...draft.conditions.flatMap((each) => missingFields(each, catalog))];
}

function regionProblems({ regions, conditions, call }) {
    const used = JSON.stringify([conditions, call]);
    return regions.flatMap(({ id, name, prompt, area }) => {
        if (prompt.trim() && !area)
            return [{ place: `regions.${id}.area`, message: `Draw ${name}, or give it a box.` }];
        if (prompt.trim() || used.includes(`"canvas":"${id}"`)) return [];
        const message = `Say what ${name} shows, use it in a method, or delete it.`;
        return [{ place: `regions.${id}.prompt`, message }];
    });
}

function missingFields({ key, type, values }, catalog) {
    const method = catalog.titleOf(type);
    const required = catalog.conditions.get(type)?.fields.filter((each) => each.required) ?? [];
    return required
        .filter((each) => values[each.name] === undefined)
        .map((each) => ({
            place: `conditions.${key}.${each.name}`,
            message: `${each.title} of ${method} is needed.`,
        }));
}
