import java.io.IOException;
import java.net.URI;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.time.Instant;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.Base64;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;
import javax.security.auth.callback.Callback;
import javax.security.auth.callback.UnsupportedCallbackException;
import javax.security.auth.login.AppConfigurationEntry;
import org.apache.kafka.common.security.auth.AuthenticateCallbackHandler;
import org.apache.kafka.common.security.oauthbearer.OAuthBearerToken;
import org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallback;

/**
 * Verifies the tokens of Amazon MSK IAM as MSK does, for one access key: a URL of the action
 * kafka-cluster:Connect, signed by AWS's Signature Version 4. A broker ends a connection whose token has expired.
 * The principal is User:admin.
 */
public final class MskIamValidator implements AuthenticateCallbackHandler {
    private static final String KEY_ID = "AKTEST";
    private static final String SECRET = "SKTESTSK";
    private static final String REGION = "eu-central-1";
    private static final String HOST = "kafka." + REGION + ".amazonaws.com";
    private static final long MAX_SECONDS = 900;
    private static final DateTimeFormatter DATE =
        DateTimeFormatter.ofPattern("yyyyMMdd'T'HHmmss'Z'").withZone(ZoneOffset.UTC);

    @Override
    public void configure(Map<String, ?> configs, String mechanism, List<AppConfigurationEntry> entries) {}

    @Override
    public void close() {}

    @Override
    public void handle(Callback[] callbacks) throws IOException, UnsupportedCallbackException {
        for (Callback callback : callbacks) {
            if (!(callback instanceof OAuthBearerValidatorCallback request)) {
                throw new UnsupportedCallbackException(callback);
            }
            try {
                request.token(verify(request.tokenValue(), Instant.now()));
            } catch (GeneralSecurityException | RuntimeException problem) {
                System.err.println("a token was refused: " + problem.getMessage());
                request.error("invalid_token", null, null);
            }
        }
    }

    /** Returns the token if its signature and its time are right. */
    private static OAuthBearerToken verify(String value, Instant now) throws GeneralSecurityException {
        String text = new String(Base64.getUrlDecoder().decode(value), StandardCharsets.UTF_8);
        URI url = URI.create(text);
        require(url.getScheme().equals("https") && url.getHost().equals(HOST), "the host " + url.getHost());
        TreeMap<String, String> parameters = new TreeMap<>();
        for (String pair : url.getRawQuery().split("&")) {
            int equals = pair.indexOf('=');
            parameters.put(pair.substring(0, equals), pair.substring(equals + 1));
        }
        String signature = parameters.remove("X-Amz-Signature");
        parameters.remove("User-Agent");
        require(decoded(parameters, "Action").equals("kafka-cluster:Connect"), "the action");
        require(parameters.get("X-Amz-Algorithm").equals("AWS4-HMAC-SHA256"), "the algorithm");
        require(parameters.get("X-Amz-SignedHeaders").equals("host"), "the signed headers");
        String date = parameters.get("X-Amz-Date");
        String scope = date.substring(0, 8) + "/" + REGION + "/kafka-cluster/aws4_request";
        require(decoded(parameters, "X-Amz-Credential").equals(KEY_ID + "/" + scope), "the credential");

        Instant signed = Instant.from(DATE.parse(date));
        long seconds = Long.parseLong(parameters.get("X-Amz-Expires"));
        Instant end = signed.plusSeconds(seconds);
        require(seconds > 0 && seconds <= MAX_SECONDS, "the lifetime of " + seconds + " s");
        require(!signed.isAfter(now.plusSeconds(60)), "the date is in the future");
        require(now.isBefore(end), "it has expired");

        StringBuilder query = new StringBuilder();
        parameters.forEach((name, parameter) -> {
            query.append(query.isEmpty() ? "" : "&").append(name).append('=').append(parameter);
        });
        String request = "GET\n/\n" + query + "\nhost:" + HOST + "\n\nhost\n" + hash("");
        String toSign = "AWS4-HMAC-SHA256\n" + date + "\n" + scope + "\n" + hash(request);
        byte[] key = ("AWS4" + SECRET).getBytes(StandardCharsets.UTF_8);
        for (String part : scope.split("/")) {
            key = mac(key, part);
        }
        byte[] expected = HexFormat.of().formatHex(mac(key, toSign)).getBytes(StandardCharsets.UTF_8);
        require(MessageDigest.isEqual(expected, signature.getBytes(StandardCharsets.UTF_8)), "the signature");
        return new Token(value, signed.toEpochMilli(), end.toEpochMilli());
    }

    private static String decoded(Map<String, String> parameters, String name) {
        return URLDecoder.decode(parameters.get(name), StandardCharsets.UTF_8);
    }

    private static void require(boolean holds, String problem) {
        if (!holds) {
            throw new IllegalArgumentException(problem + " is not accepted");
        }
    }

    private static String hash(String text) throws GeneralSecurityException {
        byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
        return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
    }

    private static byte[] mac(byte[] key, String text) throws GeneralSecurityException {
        Mac mac = Mac.getInstance("HmacSHA256");
        mac.init(new SecretKeySpec(key, "HmacSHA256"));
        return mac.doFinal(text.getBytes(StandardCharsets.UTF_8));
    }

    private record Token(String value, long start, long end) implements OAuthBearerToken {
        @Override
        public Set<String> scope() {
            return Set.of();
        }

        @Override
        public long lifetimeMs() {
            return end;
        }

        @Override
        public String principalName() {
            return "admin";
        }

        @Override
        public Long startTimeMs() {
            return start;
        }
    }
}
