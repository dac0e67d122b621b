/* Every text and every mark of a figure that has less contrast with what is behind it than WCAG AA asks for. The window
   must hold the whole page: what is behind a text is what the browser says lies there. */
() => {
  const channels = (text) => (text.match(/[\d.]+/g) ?? []).map(Number);
  const isOpaque = (text) => { const c = channels(text); return c.length === 3 || c[3] === 1; };
  const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = (c) => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const ratio = (one, other) => {
    const [low, high] = [one, other].map(channels).map(luminance).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const paint = (element) => {
    const style = getComputedStyle(element);
    if (!(element instanceof SVGElement)) return isOpaque(style.backgroundColor) ? style.backgroundColor : null;
    const fills = element instanceof SVGGeometryElement && style.fill !== "none" && style.fillOpacity === "1";
    return fills && !element.closest("defs") ? style.fill : null;
  };
  const behind = (element, x, y) => {
    const below = document.elementsFromPoint(x, y);
    const from = below.indexOf(element);
    const above = [];
    for (let one = element; one; one = one.parentElement) above.push(one);
    return (from < 0 ? above : below.slice(from)).map(paint).find((found) => found) ?? paint(document.body);
  };
  const found = { texts: 0, marks: 0, low: [] };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, range = document.createRange();
    range.selectNodeContents(texts.currentNode);
    const box = range.getBoundingClientRect();
    if (!texts.currentNode.data.trim() || !box.width || element.closest("script, style, .spoken, .skip")) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const colour = element instanceof SVGElement ? style.fill : style.color;
    const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const got = ratio(colour, behind(element, box.x + box.width / 2, box.y + box.height / 2));
    found.texts += 1;
    if (got < (isLarge ? 3 : 4.5)) found.low.push([texts.currentNode.data.trim(), colour, got]);
  }
  const probe = document.createElement("i");
  probe.style.color = "var(--grid)";
  probe.style.backgroundColor = "var(--card)";
  document.body.append(probe);
  const { color: grid, backgroundColor: paper } = getComputedStyle(probe);
  probe.remove();
  for (const shape of document.querySelectorAll("figure svg path, .legend i")) {
    if (shape.closest("defs, clipPath")) continue;
    const style = getComputedStyle(shape);
    const colours = [paint(shape), style.stroke].filter((one) => one && one !== "none" && one !== grid);
    found.marks += colours.length;
    colours.filter((one) => ratio(one, paper) < 3).forEach((one) => found.low.push([shape.outerHTML, one, ratio(one, paper)]));
  }
  return found;
}
