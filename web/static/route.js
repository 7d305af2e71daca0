/** The address of the page: which screen, which session, and how it is looked at. A shared link opens the same picture. No DOM. */

export const SCREENS = /** @type {const} */ (["stream", "replay", "pool", "gateway", "classifier", "events"]);

/**
 * @typedef {typeof SCREENS[number]} Screen
 * @typedef {{screen: Screen, session: string, evidence: boolean, solo: number, zoom: number, theme: string, still: boolean,
 *   token: {slot: number, position: number}|null, atS: number|null}} Route `solo`: a slot or −1; `zoom`: px a frame, 0 for
 *   the page's own choice; `atS`: where a replay stands, null plays it from its beginning
 */

/** @param {string} hash @returns {Route} */
export function parse(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const [name, session = ""] = path.split("/");
  const params = new URLSearchParams(query);
  const screen = SCREENS.find((known) => known === name) ?? "stream";
  const whole = (/** @type {string} */ key, /** @type {number} */ most) => {
    const value = Number(params.get(key) ?? NaN);
    return Number.isInteger(value) && value >= 0 && value <= most ? value : 0;
  };
  const at = /^\d{1,6}(\.\d{1,3})?$/.exec(params.get("at") ?? "");
  const token = /^([1-6]):(\d{1,9})$/.exec(params.get("tok") ?? "");
  return {
    screen,
    session: /^[\w-]{1,64}$/.test(session) ? session : "",
    evidence: params.get("evidence") === "1",
    solo: whole("solo", 6) - 1,
    zoom: [1, 2, 4].find((px) => px === whole("zoom", 4)) ?? 0,
    theme: ["dark", "light"].find((theme) => theme === params.get("theme")) ?? "",
    still: params.get("motion") === "reduce",
    token: token ? { slot: Number(token[1]) - 1, position: Number(token[2]) } : null,
    atS: at ? Number(at[0]) : null,
  };
}

/** @param {Route} route @returns {string} */
export function written(route) {
  const params = new URLSearchParams();
  if (route.atS !== null && route.screen === "replay") params.set("at", String(Math.round(route.atS * 1000) / 1000));
  if (route.evidence) params.set("evidence", "1");
  if (route.solo >= 0) params.set("solo", String(route.solo + 1));
  if (route.zoom > 0) params.set("zoom", String(route.zoom));
  if (route.theme) params.set("theme", route.theme);
  if (route.still) params.set("motion", "reduce");
  if (route.token) params.set("tok", `${route.token.slot + 1}:${route.token.position}`);
  const session = (route.screen === "stream" || route.screen === "replay") && route.session ? `/${route.session}` : "";
  const query = params.toString().replaceAll("%3A", ":");
  return `#/${route.screen}${session}${query ? `?${query}` : ""}`;
}
