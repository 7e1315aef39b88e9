import org.codelibs.opensearch.runner.OpenSearchRunner;

/**
 * Starts one OpenSearch node. Arguments: its home folder, then node settings as key=value.
 *
 * The runner's own main method is not used: its node has no ingest role, it ignores ports above 9299, and it hides
 * why a start failed.
 */
public class OpenSearchNode {
  public static void main(String[] arguments) throws Exception {
    var configs = OpenSearchRunner.newConfigs().basePath(arguments[0]).numOfNode(1);
    new OpenSearchRunner()
        .onBuild((number, settings) -> {
          settings.putList("node.roles", "cluster_manager", "data", "ingest");
          for (int i = 1; i < arguments.length; i++) {
            String[] pair = arguments[i].split("=", 2);
            settings.put(pair[0], pair[1]);
          }
        })
        .build(configs);
    Thread.currentThread().join();
  }
}
