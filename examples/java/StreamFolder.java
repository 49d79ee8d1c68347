package limner.examples;

import com.google.protobuf.ByteString;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import limner.v1.Image;
import limner.v1.ImageResult;
import limner.v1.ModelSpec;
import limner.v1.PredictStreamHeader;
import limner.v1.PredictStreamRequest;
import limner.v1.PredictStreamResponse;
import limner.v1.SubjectResult;

/** {@code StreamFolder MODEL FOLDER}: the scores of a folder's DICOM files, one subject's, and of the subject. */
final class StreamFolder implements ClientResponseObserver<PredictStreamRequest, PredictStreamResponse> {
    private static final int ATTEMPTS = 3;

    private final ModelSpec model;
    private final List<Path> files;
    private final CompletableFuture<StreamFolder> ended = new CompletableFuture<>();
    private final Map<Path, ImageResult> results = new TreeMap<>();
    private final Map<Path, String> unread = new TreeMap<>();
    private SubjectResult subject = SubjectResult.getDefaultInstance();
    private ClientCallStreamObserver<PredictStreamRequest> requests;
    private int sent = -1;

    private StreamFolder(ModelSpec model, List<Path> files) {
        this.model = model;
        this.files = files;
    }

    @Override
    public void beforeStart(ClientCallStreamObserver<PredictStreamRequest> stream) {
        requests = stream;
        // Called whenever the server takes more: what is sent faster than that would fill this process's memory.
        requests.setOnReadyHandler(this::send);
    }

    /** Sends while the server takes it: first the model, then the images, under numbers in place of names. */
    private void send() {
        while (requests.isReady() && sent < files.size()) {
            if (sent == -1) {
                requests.onNext(PredictStreamRequest.newBuilder()
                        .setHeader(PredictStreamHeader.newBuilder().setModel(model)).build());
            } else {
                send(sent);
            }
            if (++sent == files.size()) {
                requests.onCompleted();
            }
        }
    }

    private void send(int number) {
        Path file = files.get(number);
        try {
            requests.onNext(PredictStreamRequest.newBuilder()
                    .addImages(Image.newBuilder()
                            .setId(Integer.toString(number))
                            .setSubject("subject")
                            .setDicom(ByteString.copyFrom(Files.readAllBytes(file))))
                    .build());
        } catch (IOException error) {
            unread.put(file, error.toString());
        }
    }

    @Override
    public void onNext(PredictStreamResponse reply) {
        for (ImageResult result : reply.getResultsList()) {
            results.put(files.get(Integer.parseInt(result.getId())), result);
        }
        if (reply.hasEnd() && reply.getEnd().getSubjectsCount() > 0) {
            subject = reply.getEnd().getSubjects(0);
        }
    }

    @Override
    public void onError(Throwable error) {
        ended.completeExceptionally(error);
    }

    @Override
    public void onCompleted() {
        ended.complete(this);
    }

    private boolean hasPassingFailures() {
        return results.values().stream()
                .map(result -> Status.fromCodeValue(result.getStatus().getCode()).getCode())
                .anyMatch(Limner.PASSING::contains);
    }

    /** Scoring changes nothing on the server: a stream that failed for a passing reason is sent again as a whole. */
    private static StreamFolder patiently(Limner limner, ModelSpec model, List<Path> files)
            throws InterruptedException {
        for (int attempt = 1; ; attempt++) {
            StreamFolder stream = new StreamFolder(model, files);
            limner.streams(60 + files.size()).predictStream(stream);
            try {
                stream.ended.get();
                if (!stream.hasPassingFailures() || attempt == ATTEMPTS) {
                    return stream;
                }
            } catch (ExecutionException failure) {
                StatusRuntimeException error = (StatusRuntimeException) failure.getCause();
                if (!Limner.isPassing(error) || attempt == ATTEMPTS) {
                    throw error;
                }
            }
            Thread.sleep(1000L << attempt);
        }
    }

    public static void main(String[] words) throws IOException, InterruptedException {
        if (words.length != 2) {
            System.err.println("usage: StreamFolder MODEL FOLDER");
            System.exit(2);
        }
        List<Path> files;
        try (Stream<Path> found = Files.list(Path.of(words[1]))) {
            files = found.sorted().collect(Collectors.toList());
        }
        try (Limner limner = Limner.connect()) {
            StreamFolder stream = patiently(limner, Limner.modelSpec(words[0]), files);
            stream.results.forEach((file, result) -> {
                if (result.hasPrediction()) {
                    System.out.println(file + " " + result.getPrediction().getLabel() + " "
                            + result.getPrediction().getProbabilitiesList());
                } else {
                    System.err.println(file + " failed: " + result.getStatus().getMessage());
                }
            });
            stream.unread.forEach((file, reason) -> System.err.println(file + " not sent: " + reason));
            if (stream.subject.hasPrediction()) {
                System.out.printf("subject %s of %d slices%n",
                        stream.subject.getPrediction().getLabel(), stream.subject.getImages());
            }
            System.exit(stream.unread.isEmpty() && stream.subject.getFailed() == 0 ? 0 : 1);
        } catch (StatusRuntimeException error) {
            System.err.println(Limner.explain(error));
            System.exit(1);
        }
    }
}
