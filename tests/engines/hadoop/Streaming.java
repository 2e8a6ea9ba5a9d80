import java.io.BufferedOutputStream;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.util.Iterator;
import java.util.Map;

import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.conf.Configured;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.io.LongWritable;
import org.apache.hadoop.io.Text;
import org.apache.hadoop.mapred.FileInputFormat;
import org.apache.hadoop.mapred.FileOutputFormat;
import org.apache.hadoop.mapred.JobClient;
import org.apache.hadoop.mapred.JobConf;
import org.apache.hadoop.mapred.MapRunnable;
import org.apache.hadoop.mapred.OutputCollector;
import org.apache.hadoop.mapred.RecordReader;
import org.apache.hadoop.mapred.Reducer;
import org.apache.hadoop.mapred.Reporter;
import org.apache.hadoop.mapred.TextInputFormat;
import org.apache.hadoop.util.LineReader;
import org.apache.hadoop.util.Tool;
import org.apache.hadoop.util.ToolRunner;

/**
 * Stands in for hadoop-streaming.jar, which no package registry has: commands as mapper and reducer on Hadoop's own
 * MapReduce. Splits, sort, spills, partitions and the output committer are Hadoop's; only the pipes to the commands are
 * this file's. For tests; it knows the options that mrjob's hadoop runner gives for a job with a mapper and a reducer.
 */
public class Streaming extends Configured implements Tool {
    private static final String MAPPER = "tests.streaming.mapper";
    private static final String REDUCER = "tests.streaming.reducer";
    private static final String ENVIRONMENT = "tests.streaming.environment";

    /** A running command: lines go in, and each line that it writes is collected as key, tab, value. */
    private static final class Command {
        private final String text;
        private final Process process;
        private final OutputStream input;
        private final Thread output;
        private final Thread errors;
        private volatile Exception failure;

        Command(JobConf conf, String name, OutputCollector<Text, Text> collector) throws IOException {
            text = conf.get(name);
            ProcessBuilder builder = new ProcessBuilder("/bin/sh", "-c", "exec " + text);
            for (Map.Entry<String, String> entry : conf) {
                if (entry.getKey().startsWith("mapreduce.")) {
                    builder.environment().put(entry.getKey().replaceAll("\\W", "_"), conf.get(entry.getKey()));
                }
            }
            for (String entry : conf.get(ENVIRONMENT, "").split("\n")) {
                int equals = entry.indexOf('=');
                if (equals > 0) {
                    builder.environment().put(entry.substring(0, equals), entry.substring(equals + 1));
                }
            }
            process = builder.start();
            input = new BufferedOutputStream(process.getOutputStream(), 1 << 16);
            output = new Thread(() -> collect(collector));
            errors = new Thread(this::repeatErrors);
            output.start();
            errors.start();
        }

        /** Returns false when nobody reads any more; end() then tells why. */
        boolean write(Text first, Text second) {
            try {
                input.write(first.getBytes(), 0, first.getLength());
                if (second != null) {
                    input.write('\t');
                    input.write(second.getBytes(), 0, second.getLength());
                }
                input.write('\n');
                return true;
            } catch (IOException broken) {
                failure = broken;
                return false;
            }
        }

        void end() throws IOException {
            try {
                input.close();
            } catch (IOException broken) {
                failure = broken; // its status, below, says more
            }
            try {
                int status = process.waitFor();
                output.join();
                errors.join();
                if (status != 0) {
                    throw new IOException("status " + status + " of: " + text);
                }
            } catch (InterruptedException interrupted) {
                throw new IOException(interrupted);
            }
            if (failure != null) {
                throw new IOException(failure);
            }
        }

        private void collect(OutputCollector<Text, Text> collector) {
            Text line = new Text();
            Text key = new Text();
            Text value = new Text();
            try {
                LineReader lines = new LineReader(process.getInputStream());
                while (lines.readLine(line) > 0) {
                    int tab = line.find("\t");
                    int keyEnd = tab < 0 ? line.getLength() : tab;
                    key.set(line.getBytes(), 0, keyEnd);
                    value.set(line.getBytes(), Math.min(keyEnd + 1, line.getLength()),
                            Math.max(0, line.getLength() - keyEnd - 1));
                    collector.collect(key, value);
                }
            } catch (IOException error) {
                failure = error;
            }
        }

        private void repeatErrors() {
            try (BufferedReader lines = new BufferedReader(
                    new InputStreamReader(process.getErrorStream(), StandardCharsets.UTF_8))) {
                for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                    System.err.println(line);
                }
            } catch (IOException closed) {
                return;
            }
        }
    }

    /** Gives each line of a split to the mapper's command. */
    public static final class CommandMapper implements MapRunnable<LongWritable, Text, Text, Text> {
        private JobConf conf;

        @Override
        public void configure(JobConf job) {
            conf = job;
        }

        @Override
        public void run(RecordReader<LongWritable, Text> reader, OutputCollector<Text, Text> collector,
                Reporter reporter) throws IOException {
            Command command = new Command(conf, MAPPER, collector);
            LongWritable place = reader.createKey();
            Text line = reader.createValue();
            boolean open = true;
            while (open && reader.next(place, line)) {
                open = command.write(line, null);
            }
            command.end();
        }
    }

    /** Gives each key with each of its values to the reducer's command. */
    public static final class CommandReducer implements Reducer<Text, Text, Text, Text> {
        private JobConf conf;
        private Command command;

        @Override
        public void configure(JobConf job) {
            conf = job;
        }

        @Override
        public void reduce(Text key, Iterator<Text> values, OutputCollector<Text, Text> collector, Reporter reporter)
                throws IOException {
            if (command == null) {
                command = new Command(conf, REDUCER, collector);
            }
            boolean open = true;
            while (open && values.hasNext()) {
                open = command.write(key, values.next());
            }
        }

        @Override
        public void close() throws IOException {
            if (command != null) {
                command.end();
            }
        }
    }

    @Override
    public int run(String[] arguments) throws Exception {
        JobConf conf = new JobConf(getConf(), Streaming.class);
        conf.setInputFormat(TextInputFormat.class);
        conf.setOutputKeyClass(Text.class);
        conf.setOutputValueClass(Text.class);
        conf.setMapRunnerClass(CommandMapper.class);
        conf.setReducerClass(CommandReducer.class);
        for (int i = 0; i + 1 < arguments.length; i += 2) {
            String value = arguments[i + 1];
            switch (arguments[i]) {
                case "-input" -> FileInputFormat.addInputPath(conf, new Path(value));
                case "-output" -> FileOutputFormat.setOutputPath(conf, new Path(value));
                case "-cmdenv" -> conf.set(ENVIRONMENT, conf.get(ENVIRONMENT, "") + "\n" + value);
                case "-mapper" -> conf.set(MAPPER, value);
                case "-reducer" -> conf.set(REDUCER, value);
                default -> throw new IllegalArgumentException(arguments[i] + " is not known to this stand-in");
            }
        }
        return JobClient.runJob(conf).isSuccessful() ? 0 : 1;
    }

    public static void main(String[] arguments) throws Exception {
        System.exit(ToolRunner.run(new Configuration(), new Streaming(), arguments));
    }
}
