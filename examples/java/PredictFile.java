package limner.examples;

import com.google.protobuf.ByteString;
import io.grpc.StatusRuntimeException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import limner.v1.Image;
import limner.v1.ImageResult;
import limner.v1.PredictRequest;
import limner.v1.PredictResponse;

/** {@code PredictFile MODEL FILE}: the score of one DICOM file. The whole file is sent, with all it says of the patient. */
final class PredictFile {
    public static void main(String[] words) throws IOException {
        if (words.length != 2) {
            System.err.println("usage: PredictFile MODEL FILE");
            System.exit(2);
        }
        try (Limner limner = Limner.connect()) {
            PredictRequest request = PredictRequest.newBuilder()
                    .setModel(Limner.modelSpec(words[0]))
                    .addImages(Image.newBuilder()
                            .setId("1")
                            .setDicom(ByteString.copyFrom(Files.readAllBytes(Path.of(words[1])))))
                    .build();
            PredictResponse reply = limner.inference(30).predict(request);
            ImageResult result = reply.getResults(0);
            if (!result.hasPrediction()) {
                System.err.println(words[1] + " failed: " + Limner.violations(result.getStatus()));
                System.exit(1);
            }
            System.out.printf("%s of %s %s by %s%n", result.getPrediction().getLabel(), reply.getLabelsList(),
                    result.getPrediction().getProbabilitiesList(), reply.getModel().getDigest());
            if (result.getPrediction().getDistance().getFar()) {
                System.out.println("unlike what the model was trained on: do not rely on it");
            }
        } catch (StatusRuntimeException error) {
            System.err.println(Limner.explain(error));
            System.exit(1);
        }
    }
}
