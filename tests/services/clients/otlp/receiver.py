"""Receives OTLP over HTTP, and prints each request as one line of JSON.

Spans have their ids, name, times and attributes. Metrics have the names and labels that Prometheus
would give to their samples.
"""

import gzip
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


def attributes(pairs):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def span(found):
    return {
        "trace": found.trace_id.hex(),
        "id": found.span_id.hex(),
        "parent": found.parent_span_id.hex(),
        "name": found.name,
        "kind": found.kind,
        "nanoseconds": found.end_time_unix_nano - found.start_time_unix_nano,
        "status": found.status.code,
        "attributes": attributes(found.attributes),
    }


def sample(name, pairs, value, **more):
    labels = {**attributes(pairs), **more}
    shown = ",".join(f'{key}="{label}"' for key, label in labels.items())
    return (f"{name}{{{shown}}}" if labels else name), value


def samples(metric):
    kind = metric.WhichOneof("data")
    data = getattr(metric, kind)
    if kind == "sum":
        assert data.is_monotonic and data.aggregation_temporality == 2, metric.name
    for point in data.data_points:
        if kind == "histogram":
            count = 0
            bounds = [f"{bound:g}" for bound in point.explicit_bounds] + ["+Inf"]
            for bucket, bound in zip(point.bucket_counts, bounds):
                count += bucket
                yield sample(f"{metric.name}_bucket", point.attributes, count, le=bound)
            yield sample(f"{metric.name}_count", point.attributes, point.count)
            yield sample(f"{metric.name}_sum", point.attributes, point.sum)
        else:
            yield sample(metric.name, point.attributes, getattr(point, point.WhichOneof("value")))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.headers["Content-Type"] == "application/x-protobuf"
        shown = {"path": self.path, "key": self.headers.get("api-key")}
        if self.path == "/v1/traces":
            request, answer = ExportTraceServiceRequest.FromString(body), ExportTraceServiceResponse()
            [group] = request.resource_spans
            shown["spans"] = [span(found) for scope in group.scope_spans for found in scope.spans]
        else:
            request, answer = ExportMetricsServiceRequest.FromString(body), ExportMetricsServiceResponse()
            [group] = request.resource_metrics
            metrics = [metric for scope in group.scope_metrics for metric in scope.metrics]
            shown["samples"] = dict(pair for metric in metrics for pair in samples(metric))
        # Fields that these definitions do not know were written with wrong numbers.
        request.DiscardUnknownFields()
        assert request.ByteSize() == len(body), "the request has unknown fields"
        shown["resource"] = attributes(group.resource.attributes)
        print(json.dumps(shown), flush=True)
        answer = answer.SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"port={server.server_port}", flush=True)
try:
    server.serve_forever()
except KeyboardInterrupt:
    sys.exit(0)
