# What cloud-init does at the first start: writes the files below and runs install.sh. The scripts are files of their own
# and know nothing of Terraform; whatever differs from one installation to the next stands in gpt.env.

locals {
  settings = {
    AWS_DEFAULT_REGION    = var.region
    GPT_REPOSITORY_URL    = var.repository_url
    GPT_REPOSITORY_REF    = var.repository_ref
    GPT_TORCH_INDEX_URL   = var.torch_cpu_index_url
    GPT_BUCKET            = var.bucket.name
    GPT_SWAP_GB           = var.swap_gb
    GPT_IDLE_MINUTES      = var.idle_minutes
    GPT_DATABASE          = "${var.database.user}@${var.database.host}:${var.database.port}/${var.database.name}"
    GPT_DATABASE_PASSWORD = var.database.password_parameter # here and below: the name of what holds it
    GPT_ADMIN_PASSWORD    = aws_ssm_parameter.admin_password.name
    GPT_COOKIE_KEY        = aws_ssm_parameter.cookie_key.name
  }

  # In /usr/bin: what sudo looks through on Amazon Linux leaves /usr/local out.
  programs = {
    "install.sh"       = "/usr/bin/gpt-install"
    "fetch-secrets.sh" = "/usr/bin/gpt-fetch-secrets"
    "idle-stop.sh"     = "/usr/bin/gpt-idle-stop"
    "gpt-pipeline.sh"  = "/usr/bin/gpt-pipeline"
  }

  units = ["mlflow.service", "gpt-idle-stop.service", "gpt-idle-stop.timer"]

  user_data = join("\n", ["#cloud-config", yamlencode({
    write_files = concat(
      [{
        path        = "/etc/gpt/gpt.env"
        permissions = "0644"
        content     = join("", [for key, value in local.settings : "${key}=${value}\n"])
      }],
      [for file, place in local.programs : {
        path        = place
        permissions = "0755"
        content     = file("${path.module}/files/${file}")
      }],
      [for unit in local.units : {
        path        = "/etc/systemd/system/${unit}"
        permissions = "0644"
        content     = file("${path.module}/files/${unit}")
      }],
    )
    runcmd = [["/usr/bin/gpt-install"]]
  })])
}
