/** The one place that holds the draft, and tells who shows it that it changed. */

/**
 * @typedef {"edit"|"shape"|"reset"} Change
 * `edit`: values changed; what shows them may leave its elements in place. `shape`: something was added, removed or
 * moved. `reset`: the whole draft was replaced.
 */

/**
 * @template T
 * @param {T} initial
 */
export function createStore(initial) {
    let state = initial;
    const listeners = new Set();
    const tell = (change) => listeners.forEach((listener) => listener(state, change));
    return {
        /** @returns {T} */
        get state() {
            return state;
        },
        /**
         * Change the draft in place.
         * @param {(state: T) => void} change
         * @param {Change} [kind]
         */
        update(change, kind = "edit") {
            change(state);
            tell(kind);
        },
        /** @param {T} next */
        replace(next) {
            state = next;
            tell("reset");
        },
        /** @param {(state: T, change: Change) => void} listener */
        subscribe(listener) {
            listeners.add(listener);
        },
    };
}
