"""The service: trains, serves and explains MRI outcome models over gRPC. `app` wires it together."""
