package limner.examples;

import static java.util.concurrent.TimeUnit.SECONDS;

import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.protobuf.StatusProto;
import java.io.File;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import limner.v1.InferenceServiceGrpc;
import limner.v1.ModelServiceGrpc;
import limner.v1.ModelSpec;

/** A connection to a Limner server, and what its errors say. Research software, not for diagnostic use. */
final class Limner implements AutoCloseable {
    private static final int MESSAGE_BYTES = 256 * 1024 * 1024;
    private static final Metadata.Key<String> REQUEST_ID =
            Metadata.Key.of("limner-request-id", Metadata.ASCII_STRING_MARSHALLER);

    static final Set<Status.Code> PASSING = Set.of(Status.Code.UNAVAILABLE, Status.Code.RESOURCE_EXHAUSTED);

    /** A full queue says in a trailer how long to wait; the retry policy heeds it. */
    private static final Map<String, ?> RETRIES = Map.of("methodConfig", List.of(Map.of(
            "name", List.of(Map.of("service", "limner.v1.InferenceService", "method", "Predict")),
            "retryPolicy", Map.of(
                    "maxAttempts", 4.0,
                    "initialBackoff", "0.2s",
                    "maxBackoff", "2s",
                    "backoffMultiplier", 2.0,
                    "retryableStatusCodes", List.of("UNAVAILABLE", "RESOURCE_EXHAUSTED")))));

    private final ManagedChannel channel;

    private Limner(ManagedChannel channel) {
        this.channel = channel;
    }

    /** Opens the server LIMNER_SERVER, by TLS where LIMNER_TLS_CA names the authorities to trust. */
    static Limner connect() throws IOException {
        String address = System.getenv().getOrDefault("LIMNER_SERVER", "localhost:8500");
        String authorities = System.getenv("LIMNER_TLS_CA");
        ChannelCredentials credentials = authorities == null
                ? InsecureChannelCredentials.create()
                : TlsChannelCredentials.newBuilder().trustManager(new File(authorities)).build();
        return new Limner(Grpc.newChannelBuilder(address, credentials)
                .maxInboundMessageSize(MESSAGE_BYTES)
                .keepAliveTime(30, SECONDS)
                .defaultServiceConfig(RETRIES)
                .enableRetry()
                .build());
    }

    /** The calls that manage models; each fails with DEADLINE_EXCEEDED after so many seconds. */
    ModelServiceGrpc.ModelServiceBlockingStub models(long seconds) {
        return ModelServiceGrpc.newBlockingStub(channel).withDeadlineAfter(seconds, SECONDS);
    }

    /** The unary calls that score; each fails with DEADLINE_EXCEEDED after so many seconds. */
    InferenceServiceGrpc.InferenceServiceBlockingStub inference(long seconds) {
        return InferenceServiceGrpc.newBlockingStub(channel).withDeadlineAfter(seconds, SECONDS);
    }

    /** The streams that score; each fails with DEADLINE_EXCEEDED after so many seconds. */
    InferenceServiceGrpc.InferenceServiceStub streams(long seconds) {
        return InferenceServiceGrpc.newStub(channel).withDeadlineAfter(seconds, SECONDS);
    }

    @Override
    public void close() {
        channel.shutdownNow();
    }

    /** "cervix", "cervix:3" or "cervix:production", as the contract has it. */
    static ModelSpec modelSpec(String text) {
        String[] parts = text.split(":", 2);
        return ModelSpec.newBuilder().setName(parts[0]).setVersion(parts.length > 1 ? parts[1] : "").build();
    }

    /** What a status, of a call or of one image, says of single fields: "field: what it is and should be". */
    static List<String> violations(com.google.rpc.Status status) {
        List<String> violations = new ArrayList<>();
        for (com.google.protobuf.Any detail : status.getDetailsList()) {
            if (!detail.is(BadRequest.class)) {
                continue;
            }
            try {
                for (BadRequest.FieldViolation found : detail.unpack(BadRequest.class).getFieldViolationsList()) {
                    violations.add(found.getField() + ": " + found.getDescription());
                }
            } catch (InvalidProtocolBufferException damaged) {
                violations.add("details that cannot be read: " + damaged.getMessage());
            }
        }
        return violations;
    }

    /** Whether a call that failed may simply be made again. INTERNAL without a request id: a proxy lost its server. */
    static boolean isPassing(StatusRuntimeException error) {
        Status.Code code = error.getStatus().getCode();
        Metadata trailers = error.getTrailers();
        boolean answered = trailers != null && trailers.containsKey(REQUEST_ID);
        return PASSING.contains(code) || (code == Status.Code.INTERNAL && !answered);
    }

    /** One line: the status of a call that failed, the fields that were wrong, what finds it in the server's log. */
    static String explain(StatusRuntimeException error) {
        List<String> parts = new ArrayList<>();
        parts.add(error.getStatus().getCode() + ": " + error.getStatus().getDescription());
        if (error.getStatus().getCause() != null) {
            parts.add("cause: " + error.getStatus().getCause().getMessage());
        }
        com.google.rpc.Status details = StatusProto.fromThrowable(error);
        if (details != null) {
            parts.addAll(violations(details));
        }
        Metadata trailers = error.getTrailers();
        String request = trailers == null ? null : trailers.get(REQUEST_ID);
        parts.add("request: " + (request == null ? "none, the call reached no server" : request));
        return String.join("; ", parts).replace('\n', ' ');
    }
}
