package limner.examples;

import io.grpc.StatusRuntimeException;
import java.io.IOException;
import limner.v1.ListModelsRequest;
import limner.v1.Model;

/** {@code ListModels}: the models of a server and what they are for. */
final class ListModels {
    public static void main(String[] words) throws IOException {
        try (Limner limner = Limner.connect()) {
            for (Model model : limner.models(10).listModels(ListModelsRequest.getDefaultInstance()).getModelsList()) {
                System.out.printf("%s:%s %s %s %.0f mm %s %s%n",
                        model.getIdentity().getName(), model.getIdentity().getVersion(), model.getState(),
                        String.join(" | ", model.getLabelsList()), model.getGrid().getFovMm(),
                        model.getIdentity().getDigest(), model.getError());
            }
        } catch (StatusRuntimeException error) {
            System.err.println(Limner.explain(error));
            System.exit(1);
        }
    }
}
