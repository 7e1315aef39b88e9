import java.nio.file.Path;
import java.util.Map;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginsLoader;

/** Starts one Elasticsearch 8 node. Arguments: its home folder, then node settings as key=value. */
public class ElasticsearchNode {
  public static void main(String[] arguments) throws Exception {
    LogConfigurator.configureESLogging();
    Path home = Path.of(arguments[0]);
    Settings.Builder settings = Settings.builder().put("path.home", home);
    for (int i = 1; i < arguments.length; i++) {
      String[] pair = arguments[i].split("=", 2);
      settings.put(pair[0], pair[1]);
    }
    var environment = InternalSettingsPreparer.prepareEnvironment(
        settings.build(), Map.of(), home.resolve("config"), () -> "node");
    LogConfigurator.configureWithoutConfig(environment.settings());
    var modules = PluginsLoader.loadModulesBundles(environment.modulesDir());
    var plugins = PluginsLoader.loadPluginsBundles(environment.pluginsDir());
    // The last argument is false because the server is on the class path, not in a named module.
    new Node(environment, PluginsLoader.createPluginsLoader(modules, plugins, Map.of(), false)).start();
    Thread.currentThread().join();
  }
}
