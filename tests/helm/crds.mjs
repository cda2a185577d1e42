// Validates objects of the Prometheus operator and of cert-manager, as JSON lines on standard input, against the schemas of
// their CRDs. usage: node crds.mjs <objects
import * as certManager from "@kubernetes-models/cert-manager/cert-manager.io/v1";
import * as monitoring from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
import { readFileSync } from "node:fs";

const groups = { "cert-manager.io/v1": certManager, "monitoring.coreos.com/v1": monitoring };
let wrong = 0;
for (const line of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const object = JSON.parse(line);
  const Kind = groups[object.apiVersion]?.[object.kind];
  try {
    if (!Kind) throw new Error("no such kind");
    new Kind(object).validate();
  } catch (error) {
    wrong += 1;
    console.error(`${object.kind} ${object.metadata.name}: ${error.message}`);
  }
}
process.exit(wrong ? 1 : 0);
