// Draws one dashboard with Grafana's own components, from its JSON and what Prometheus answered (window.PICTURE).
//
// Grafana's: panels' frames, curves, axes, thresholds, legends, numbers and their units, colours, tables, bars, "no data".
// Ours, after Grafana: the grid, the heads of rows, the bar at the top, and how a query's answer becomes data frames.
import "@fontsource/inter/latin-400.css";
import "@fontsource/inter/latin-500.css";
import "@fontsource/inter/latin-600.css";
import {
    applyFieldOverrides, createTheme, dateTime, FieldConfigOptionsRegistry, FieldType, getDisplayValueAlignmentFactors,
    getFieldDisplayValues, standardTransformers, ThemeContext, toDataFrame, transformDataFrame, standardTransformersRegistry,
    VizOrientation,
} from "@grafana/data";
import { BarGauge, BigValue, Icon, PanelChrome, PortalContainer, Table, TimeSeries, VizRepeater } from "@grafana/ui";
import { lastValueFrom } from "rxjs";
import { createRoot } from "react-dom/client";

const CELL = 30, GAP = 8, COLUMNS = 24, TOP = 88;
const { dashboard, results, from, to, step, width } = window.PICTURE;
const theme = createTheme({ colors: { mode: "dark" } });
const range = { from: dateTime(from * 1000), to: dateTime(to * 1000), raw: { from: dateTime(from * 1000), to: dateTime(to * 1000) } };
const same = (text) => text;

const { organizeFieldsTransformer: organize, sortByTransformer: sortBy } = standardTransformers;
standardTransformersRegistry.setInit(() => [organize, sortBy].map((it) => ({ id: it.id, name: it.name, transformation: it })));

// As Grafana's data source for Prometheus: {{label}} filled in; without a format the labels themselves, or the query.
function legend(target, labels) {
    if (target.legendFormat) return target.legendFormat.replace(/\{\{\s*(.+?)\s*\}\}/g, (_, name) => labels[name] ?? "");
    const { __name__: name = "", ...rest } = labels;
    const pairs = Object.entries(rest).map(([key, value]) => `${key}="${value}"`);
    return pairs.length ? `${name}{${pairs.join(", ")}}` : name || target.expr;
}

const number = (text) => ({ "+Inf": Infinity, "-Inf": -Infinity })[text] ?? Number(text);

function framesOf(panel) {
    return panel.targets.flatMap((target, nth) => {
        const { resultType, result } = results[panel.id][nth];
        if (resultType === "matrix") {
            return result.map(({ metric, values }) => toDataFrame({ refId: target.refId, fields: [
                { name: "Time", type: FieldType.time, values: values.map(([time]) => time * 1000), config: { interval: step * 1000 } },
                { name: "Value", type: FieldType.number, labels: metric, config: { displayNameFromDS: legend(target, metric) },
                    values: values.map(([, value]) => number(value)) },
            ] }));
        }
        if (target.format === "table") {
            if (!result.length) return [];
            const names = [...new Set(result.flatMap(({ metric }) => Object.keys(metric)))].sort();
            return [toDataFrame({ refId: target.refId, fields: [
                { name: "Time", type: FieldType.time, values: result.map(({ value }) => value[0] * 1000) },
                ...names.map((name) => ({ name, type: FieldType.string, values: result.map(({ metric }) => metric[name] ?? "") })),
                { name: "Value", type: FieldType.number, values: result.map(({ value }) => number(value[1])) },
            ] })];
        }
        return result.map(({ metric, value }) => toDataFrame({ refId: target.refId, fields: [
            { name: "Time", type: FieldType.time, values: [value[0] * 1000] },
            { name: "Value", type: FieldType.number, labels: metric, config: { displayNameFromDS: legend(target, metric) },
                values: [number(value[1])] },
        ] }));
    });
}

// The registry of a panel's settings is in Grafana's application: here is one that takes every setting as it is.
function registry(panel) {
    const items = new Map();
    const take = (path) => {
        if (items.has(path)) return;
        items.set(path, { id: path, path: path.replace(/^custom\./, ""), name: path, isCustom: path.startsWith("custom."),
            process: same, shouldApply: () => true, override: () => null, editor: () => null });
    };
    const { custom = {}, ...plain } = panel.fieldConfig.defaults;
    Object.keys(plain).forEach(take);
    Object.keys(custom).forEach((key) => take(`custom.${key}`));
    panel.fieldConfig.overrides.forEach((rule) => rule.properties.forEach(({ id }) => take(id)));
    return new FieldConfigOptionsRegistry(() => [...items.values()]);
}

async function dataOf(panel) {
    const transformed = await lastValueFrom(transformDataFrame(panel.transformations ?? [], framesOf(panel)));
    return applyFieldOverrides({ data: transformed, fieldConfig: panel.fieldConfig, fieldConfigRegistry: registry(panel),
        replaceVariables: same, theme, timeZone: "utc" });
}

function Nothing({ panel }) {
    return <div className="nothing">{panel.fieldConfig.defaults.noValue ?? "No data"}</div>;
}

function Drawing({ panel, data, width, height }) {
    const { options, fieldConfig } = panel;
    const values = () => getFieldDisplayValues({ fieldConfig, reduceOptions: options.reduceOptions, replaceVariables: same, theme,
        data, timeZone: "utc", sparkline: (options.graphMode ?? "none") !== "none" });
    if (panel.type === "timeseries") {
        if (!data.length) return <Nothing panel={panel} />;
        return <TimeSeries frames={data} structureRev={1} timeRange={range} timeZone="utc" width={width} height={height}
            legend={options.legend} options={options} />;
    }
    if (panel.type === "table") {
        if (!data.length) return <Nothing panel={panel} />;
        const initial = options.sortBy?.map(({ displayName, desc }) => ({ displayName, desc }));
        return <Table data={data[0]} width={width} height={height} initialSortBy={initial} enablePagination={false}
            cellHeight={options.cellHeight} timeRange={range} />;
    }
    const repeat = { getValues: values, width, height, source: data, renderCounter: 0, autoGrid: true };
    if (panel.type === "stat") {
        return <VizRepeater {...repeat} orientation={options.orientation} getAlignmentFactors={getDisplayValueAlignmentFactors}
            renderValue={({ value, alignmentFactors, width, height, count }) => <BigValue value={value.display} count={count}
                sparkline={value.sparkline && { ...value.sparkline, timeRange: range }}
                colorMode={options.colorMode} graphMode={options.graphMode} justifyMode={options.justifyMode}
                textMode={options.textMode} alignmentFactors={alignmentFactors} width={width} height={height} theme={theme} />} />;
    }
    if (panel.type === "bargauge") {
        if (!data.length) return <Nothing panel={panel} />;
        return <VizRepeater {...repeat} autoGrid={false} orientation={options.orientation ?? VizOrientation.Auto}
            itemSpacing={options.displayMode === "lcd" ? 2 : 10} minVizHeight={options.minVizHeight}
            minVizWidth={options.minVizWidth} maxVizHeight={options.sizing === "auto" ? 300 : options.maxVizHeight}
            getAlignmentFactors={getDisplayValueAlignmentFactors}
            renderValue={({ value, alignmentFactors, orientation, width, height }) => <BarGauge value={value.display} field={value.field}
                display={value.view?.getFieldDisplayProcessor(value.colIndex)} orientation={orientation} width={width} height={height}
                theme={theme} text={options.text} alignmentFactors={alignmentFactors} displayMode={options.displayMode}
                showUnfilled={options.showUnfilled} valueDisplayMode={options.valueMode} namePlacement={options.namePlacement}
                itemSpacing={10} lcdCellWidth={12} />} />;
    }
    throw new Error(`no way to draw ${panel.type}`);
}

const place = ({ x, y, w, h }) => ({
    position: "absolute", left: GAP + x * ((width - GAP) / COLUMNS), top: TOP + y * (CELL + GAP),
    width: w * ((width - GAP) / COLUMNS) - GAP, height: h * (CELL + GAP) - GAP,
});

function Panel({ panel, data }) {
    const at = place(panel.gridPos);
    if (panel.type === "row") return <div className="row" style={at}><Icon name="angle-down" />{panel.title}</div>;
    return <div style={at}>
        <PanelChrome title={panel.title} description={panel.description} width={at.width} height={at.height}
            titleItems={panel.links?.length ? [<Icon key="links" name="external-link-alt" size="md" className="links" />] : []}>
            {(width, height) => <Drawing panel={panel} data={data} width={width} height={height} />}
        </PanelChrome>
    </div>;
}

function Head() {
    const value = (it) => it.type === "datasource" ? "Prometheus" : [].concat(it.current.text).join(" + ");
    const links = window.PICTURE.dashboards.map((title) =>
        <span className="control" key={title}><Icon name="external-link-alt" />{title}</span>);
    const time = (at) => new Date(at * 1000).toISOString().slice(0, 19).replace("T", " ");
    return <>
        <div className="bar">
            <b>{dashboard.title}</b><span className="control"><Icon name="clock-nine" />{time(from)} to {time(to)} UTC</span>
        </div>
        <div className="bar">
            {dashboard.templating.list.filter((it) => it.hide !== 2).map((it) => <span className="variable" key={it.name}>
                <label>{it.label}</label>
                <span className="control">{value(it)}{it.type !== "textbox" && <Icon name="angle-down" />}</span>
            </span>)}
            <span className="rest" />{links}
        </div>
    </>;
}

const { background, border, text } = theme.colors;
const style = document.createElement("style");
style.textContent = `
    * { box-sizing: border-box } ul { list-style: none } button { font: inherit; color: inherit; background: none; border: 0 }
    html { font-size: 14px } h2, h6 { margin: 0; font-weight: 500 } p { margin: 0 }
    body { margin: 0; background: ${background.canvas}; color: ${text.primary}; font: 14px/1.571 ${theme.typography.fontFamily} }
    .bar { display: flex; white-space: nowrap; align-items: center; gap: 8px; height: 40px; padding: 4px 8px 0 }
    .bar b { font-size: 16px; flex: 1 }
    .rest { flex: 1 } .control, .variable label { display: inline-flex; align-items: center; gap: 6px; height: 32px; padding: 0 8px;
        background: ${background.primary}; border: 1px solid ${border.medium}; font-size: 12px; border-radius: 2px }
    .variable { display: inline-flex } .variable label { border-right: 0; font-weight: 500 }
    .row { display: flex; align-items: center; gap: 8px; font-size: 16px; font-weight: 500 }
    .nothing { height: 100%; display: grid; place-items: center; color: ${text.secondary} }
    .links { color: ${text.secondary}; margin: 0 4px; align-self: center }`;
document.head.append(style);

async function draw() {
    await document.fonts.load("14px Inter");
    const drawn = await Promise.all(dashboard.panels.map(async (panel) =>
        <Panel key={panel.id} panel={panel} data={panel.type === "row" ? [] : await dataOf(panel)} />));
    createRoot(document.getElementById("root")).render(
        <ThemeContext.Provider value={theme}><Head />{drawn}<PortalContainer /></ThemeContext.Provider>);
}

// Whoever takes the picture is told how many panels are in it, and what went wrong.
const tell = (text) => fetch("/", { method: "POST", body: text });
addEventListener("error", (event) => tell(event.message));
draw().then(() => setTimeout(() => tell(`drawn ${document.querySelectorAll("section").length}`), 3000), (error) => tell(error.stack));
