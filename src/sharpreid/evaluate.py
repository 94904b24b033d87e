"""Score a checkpoint again: ``python -m sharpreid.evaluate checkpoint=RUN/checkpoints/final.ckpt``."""

import sys

from sharpreid.standard_streams import tolerate_write_errors

USAGE = """\
usage: python -m sharpreid.evaluate checkpoint=RUN/checkpoints/final.ckpt [key=value ...] [output=FILE.json]

Scores the checkpoint by the config of its run (RUN/config.yaml). Without overrides the scores equal those of
RUN/scores.json to the last digit on the same machine. These values can be overridden:

  data.eval_transform.crops=ten_crop     plain | flip | ten_crop | ten_crop_8_7
  model.sampler.test_mask=expected       noise_free | expected | mean | hard | sample
  model.sampler.sample_noise=per_view    shared | per_view, for test_mask=sample
  recalibrate=2000                       recompute batch-norm statistics on this many training images with the
                                         test mask; 0, the default, keeps the statistics of the training
  re_ranking=k_reciprocal                none | k_reciprocal | query_expansion, with the values of
                                         conf/re_ranking/; re_ranking.k1=30 then changes one of them
  data_root=/path data.source.root=/path trainer.accelerator=cpu data.num_workers=0
  image.height=256 image.width=128 trainer.precision=32-true protocol.denominator=all_queries

output=FILE.json also writes the scores to a file.

With --multirun a value may be a list, as in Hydra, and checkpoint=... may be repeated. Every combination is
scored, and one table shows all of them, averaged over model.sampler.seed. FILE.json then holds a list.

  --multirun model.sampler.test_mask=noise_free,expected,hard
  --multirun model.sampler.test_mask=sample model.sampler.draws=1,8 'model.sampler.seed=range(0,5)'
  +experiment=test_mask    such lists from conf/evaluation/test_mask.yaml
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit with status 2 without arguments, 1 if the checkpoint cannot be scored."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    from sharpreid.config.overrides import find_misspelt_of_evaluation  # Hydra, not for the help

    if problem := find_misspelt_of_evaluation(arguments):
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)
    from sharpreid.run.evaluation import run  # slow, and not for the help

    run(arguments, USAGE)


if __name__ == "__main__":
    tolerate_write_errors()
    main()
