// What axe-core finds on the page as it is looked at now, by the rules of WCAG 2.2 up to level AA and by its own advice.
// Answers with a sentence for each element that breaks one.
const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
// A rule that is young is off unless it is asked for.
const rules = { "target-size": { enabled: true } };
return (async () => {
  const { violations } = await axe.run(document, { runOnly: tags, rules, resultTypes: ["violations"] });
  return violations.flatMap(({ id, nodes }) =>
    nodes.map(({ target, failureSummary }) => `${id}: ${target.join(" ")}: ${failureSummary.replace(/\s+/g, " ")}`));
})();
