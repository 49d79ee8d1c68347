"""`inference.GRPCInferenceService`: the Open Inference Protocol (KServe v2) with Triton's extensions, over gRPC.

A second front on the executors that answer `limner.v1`, for clients and load generators that exist already. `service`
is the servicer, `inference` reads and answers ModelInfer, `shared_memory` holds the clients' regions, `description`
tells of models.
The messages are those that `tritonclient` ships
(https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto).
"""
